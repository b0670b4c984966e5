// Pieces that pages are made of.
import { html, signal, useEffect, useRef, useState } from './lib.js';
import { choose, loadModels, model, models } from './store.js';
import { bytes, parameters } from './format.js';

// Messages

export const toasts = signal([]);
export function tell(text, kind = 'info') {
  const one = { text, kind, id: Math.random() };
  toasts.value = [...toasts.value.slice(-2), one];
  setTimeout(() => { toasts.value = toasts.value.filter((other) => other !== one); }, kind === 'bad' ? 9000 : 4000);
}
export const Toasts = () => html`<div class="toasts" role="status" aria-live="polite">
  ${toasts.value.map((one) => html`<div key=${one.id} class=${'toast ' + one.kind}>${one.text}</div>`)}</div>`;

// What is loaded when a page opens: [value, problem, again]

export function useLoad(load, needs) {
  const [state, set] = useState({ value: null, problem: null });
  const turn = useRef(0);
  const again = () => {
    const mine = ++turn.current;
    return Promise.resolve().then(load).then((value) => { if (mine === turn.current) set({ value, problem: null }); },
      (error) => { if (mine === turn.current) set((old) => ({ value: old.value, problem: error.message })); });
  };
  useEffect(() => { again(); return () => { turn.current++; }; }, needs);
  return [state.value, state.problem, again];
}

// Layout

export const Page = ({ title, lead, actions, children }) => {
  useEffect(() => { document.title = `${title} · anytune`; }, [title]);
  return html`<main id="main" tabindex="-1"><header class="head"><div><h1>${title}</h1>${lead && html`<p class="lead">${lead}</p>`}</div>
    ${actions && html`<div class="row actions">${actions}</div>`}</header>${children}</main>`;
};
export const Card = ({ title, aside, children, points, class: name = '' }) => html`<section class=${'card ' + name} data-points=${points}>
  ${title && html`<div class="card-head"><h2>${title}</h2>${aside}</div>`}${children}</section>`;
export const Problem = ({ text }) => text ? html`<div class="problem" role="alert">${text}</div>` : null;
export const Wait = ({ what = 'Loading' }) => html`<p class="wait" aria-busy="true">${what}…</p>`;
export const Empty = ({ children }) => html`<div class="empty">${children}</div>`;
export const State = ({ state, text }) => html`<span class=${'state ' + state}>${text || state}</span>`;
export const Bar = ({ done, total, label }) => html`<div class="bar" role="progressbar" aria-label=${label} aria-valuemin="0" aria-valuemax="100"
  aria-valuenow=${total ? Math.round(100 * done / total) : 0}><i style=${{ width: `${total ? Math.min(100, 100 * done / total) : 0}%` }}></i></div>`;
export const Fact = ({ name, children, warn }) => html`<div class=${'fact' + (warn ? ' warn' : '')}><dt>${name}</dt><dd>${children}</dd></div>`;

// Forms

let labels = 0;
export function Field({ label, hint, children }) {
  return html`<div class="field"><label><span class="label">${label}</span>${children}</label>${hint && html`<span class="hint">${hint}</span>`}</div>`;
}
export function Num({ label, hint, value, set, step = 'any', min, max }) {
  return html`<${Field} label=${label} hint=${hint}><input type="number" inputmode="decimal" value=${value ?? ''} step=${step} min=${min} max=${max}
    onInput=${(e) => set(e.target.value === '' ? null : Number(e.target.value))} /><//>`;
}
export function Choice({ label, value, set, options }) {
  const [name] = useState(() => `choice-${++labels}`);
  return html`<fieldset class="choice"><legend class="label">${label}</legend><div class="segments">
    ${options.map(([key, text]) => html`<label class=${key === value ? 'on' : ''}><input type="radio" name=${name} checked=${key === value}
      onChange=${() => set(key)} />${text}</label>`)}</div></fieldset>`;
}
export function ModelPicker({ label = 'Model', set }) {
  useEffect(() => { if (!models.value) loadModels().catch((error) => tell(error.message, 'bad')); }, []);
  const rows = models.value ? models.value.models.filter((one) => one.trainable) : [];
  return html`<${Field} label=${label}><select value=${model.value} onChange=${(e) => { choose(e.target.value); if (set) set(e.target.value); }}>
    ${!models.value && html`<option value=${model.value}>Looking for models…</option>`}
    ${models.value && !rows.length && html`<option value="">No model yet: fetch one under Models</option>`}
    ${rows.map((one) => html`<option value=${one.name}>${one.label} · ${one.type} · ${parameters(one.parameters)} · ${bytes(one.bytes)}</option>`)}</select><//>`;
}

// A name that is changed in place
export function Editable({ value, save, label, area }) {
  const [text, set] = useState(value), [open, show] = useState(false);
  useEffect(() => set(value), [value]);
  const keep = () => { show(false); if (text !== value) save(text); };
  if (!area && !open) return html`<button class="quiet" onClick=${() => show(true)}>Rename</button>`;
  return area ? html`<textarea class="note" rows="2" aria-label=${label} placeholder=${label} value=${text} onInput=${(e) => set(e.target.value)} onBlur=${keep}></textarea>`
    : html`<input class="rename" ref=${(box) => { if (box && document.activeElement !== box) box.focus(); }} aria-label=${label} value=${text} onInput=${(e) => set(e.target.value)} onBlur=${keep}
      onKeyDown=${(e) => { if (e.key === 'Enter') e.target.blur(); if (e.key === 'Escape') { set(value); } }} />`;
}

// Asks once more before what cannot be undone
export function Confirm({ text, sure = 'Really?', act, class: name = '' }) {
  const [asked, ask] = useState(false);
  useEffect(() => { if (asked) { const t = setTimeout(() => ask(false), 4000); return () => clearTimeout(t); } }, [asked]);
  return html`<button class=${name} onClick=${() => { if (asked) { ask(false); act(); } else ask(true); }}>${asked ? sure : text}</button>`;
}
export const busy = (act) => async (event) => {
  const button = event && event.currentTarget;
  if (button) button.disabled = true;
  try { return await act(event); } catch (error) { tell(error.message, 'bad'); } finally { if (button) button.disabled = false; }
};
