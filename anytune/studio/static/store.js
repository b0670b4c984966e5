// What several pages know: jobs (kept fresh by the server), models, the model that was chosen last.
import { signal } from './lib.js';
import { get } from './api.js';

export const jobs = signal(null);       // all jobs, the newest first; null: not asked yet
export const models = signal(null);     // {models, free}
export const model = signal(remembered('model', ''));

export function remembered(name, other) {
  try { return localStorage.getItem(name) ?? other; } catch { return other; }
}
export function remember(name, value) {
  try { localStorage.setItem(name, value); } catch { /* private windows keep nothing */ }
}
export function choose(name) {
  model.value = name;
  remember('model', name);
}

export async function loadModels() {
  const found = await get('models');
  models.value = found;
  const names = found.models.filter((one) => one.trainable).map((one) => one.name);
  if (!names.includes(model.value)) choose((found.models.find((one) => one.trainable && one.chat_template) || { name: names[0] || '' }).name);
  return found;
}

export async function loadJobs() {
  jobs.value = await get('jobs');
}

function changed(row) {
  if (!jobs.value) return;
  const others = jobs.value.filter((one) => one.id !== row.id);
  jobs.value = [row, ...others].sort((a, b) => b.created - a.created);
}

let source = null;
export function listen() {
  if (source) source.close();
  source = new EventSource('/api/events');
  source.onerror = () => get('health').catch(() => null);      // a studio that is gone is told by the first call that fails
  source.addEventListener('hello', () => loadJobs().catch(() => null));  // after a break something may have been missed
  source.addEventListener('job', (event) => changed(JSON.parse(event.data)));
}
// A phone that wakes has a dead connection which does not know it yet.
document.addEventListener('visibilitychange', () => {
  if (!document.hidden && source && source.readyState === 2) listen();
});
