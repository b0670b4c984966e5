// Runs: the queue and the history.
import { html, useState } from '../lib.js';
import { del, post } from '../api.js';
import { go } from '../router.js';
import { jobs, loadJobs } from '../store.js';
import { ago, count, number, short } from '../format.js';
import { Bar, Confirm, Empty, Page, State, Wait, busy } from '../ui.js';

export const WORDS = { train: 'Training', verify: 'Proof', export: 'Export', combine: 'Combination', evaluate: 'Report', pull: 'Download', adapt: 'Closed form' };
export const act = (id, action) => busy(() => post(`jobs/${id}/${action}`));

export function Actions({ job, again }) {
  const open = job.state === 'running' || job.state === 'queued';
  return html`<div class="row actions">
    ${open && job.kind === 'train' && html`<button onClick=${act(job.id, 'pause')}>Pause</button>`}
    ${open && html`<${Confirm} text="Cancel" sure="Cancel it?" act=${act(job.id, 'cancel')} />`}
    ${['paused', 'crashed', 'failed', 'cancelled'].includes(job.state) && html`<button onClick=${act(job.id, 'resume')}>${job.kind === 'train' ? 'Resume' : 'Try again'}</button>`}
    ${job.kind === 'train' && again && html`<a class="button" href=${`/train?from=${job.id}`}>Again with changes</a>`}</div>`;
}

export function Runs() {
  const [kind, set] = useState('train'), [picked, pick] = useState([]);
  if (!jobs.value) return html`<${Page} title="Runs"><${Wait} /><//>`;
  const rows = jobs.value.filter((one) => (one.kind === 'train') === (kind === 'train'));
  const toggle = (id) => pick(picked.includes(id) ? picked.filter((one) => one !== id) : [...picked, id]);
  return html`<${Page} title="Runs" actions=${html`${picked.length > 1 && html`<button class="primary" onClick=${() => go('/compare?runs=' + picked.join(','))}>Overlay ${picked.length} runs</button>`}
      <a class="button primary" href="/train">New run</a>`}>
    <div class="tabs" role="tablist"><button role="tab" aria-selected=${kind === 'train'} onClick=${() => set('train')}>Training</button>
      <button role="tab" aria-selected=${kind !== 'train'} onClick=${() => set('work')}>Other work</button></div>
    ${!rows.length ? html`<${Empty}>${kind === 'train' ? html`Nothing was trained yet. <a href="/data">Start with data</a>.` : 'Nothing yet.'}<//>`
    : html`<ul class="list">${rows.slice(0, 300).map((job) => html`<li key=${job.id}>
      ${kind === 'train' && html`<input type="checkbox" aria-label=${'Overlay ' + job.name} checked=${picked.includes(job.id)} onChange=${() => toggle(job.id)} />`}
      <a class="item" href=${'/runs/' + job.id}><span class="row"><b>${job.name}</b> <${State} state=${job.state} /></span>
        <span>${kind === 'train' ? html`${short(job.model)} · ${job.data && job.data.name} · ${job.total ? `step ${count(job.step)} of ${count(job.total)}` : 'not started'}${job.loss !== null && job.loss !== undefined ? ` · loss ${number(job.loss)}` : ''}`
          : WORDS[job.kind] || job.kind} · ${ago(job.created)}</span>
        ${job.message && html`<span class=${job.state === 'failed' || job.state === 'crashed' ? 'bad' : 'hint'}>${job.message}</span>`}
        ${job.state === 'running' && job.total && html`<${Bar} done=${job.step} total=${job.total} label="Steps" />`}</a>
      ${job.state !== 'running' && html`<${Confirm} class="quiet" text="Delete" act=${busy(async () => { await del('jobs/' + job.id); await loadJobs(); })} />`}</li>`)}</ul>`}<//>`;
}
