// Models: what is on this machine, what fits it, and fetching more.
import { html, useEffect, useState } from '../lib.js';
import { get, post, query } from '../api.js';
import { choose, jobs, loadModels, model, models } from '../store.js';
import { bytes, count, parameters } from '../format.js';
import { Bar, Card, Empty, Fact, Page, Problem, State, Wait, busy, tell, useLoad } from '../ui.js';

const STORES = { ollama: 'Ollama', lmstudio: 'LM Studio', huggingface: 'Hugging Face', 'llama.cpp': 'llama.cpp', anytune: 'anytune' };
// a guess for the list; the details are counted by the model's own code
const fit = (one, free) => one.bytes * 1.3 + 3e8 < free ? ['finished', 'fits'] : one.bytes * 1.02 < free ? ['paused', 'tight'] : ['failed', 'too large'];

export function Models() {
  const [name, setName] = useState(''), [problem, setProblem] = useState(null), [open, setOpen] = useState(null), [search, setSearch] = useState('');
  const pulls = (jobs.value || []).filter((job) => job.kind === 'pull').slice(0, 4), ended = pulls.filter((job) => job.state === 'finished').length;
  useEffect(() => { loadModels().then(() => setProblem(null), (error) => setProblem(error.message)); }, [ended]);
  const fetchIt = busy(async () => { await post('models/pull', { name }); setName(''); tell('Fetching.'); });
  const found = models.value, rows = found ? found.models.filter((one) => (one.label + one.architecture + one.type).toLowerCase().includes(search.toLowerCase())) : [];
  return html`<${Page} title="Models" lead="Every GGUF on this computer, used in place.">
    <${Problem} text=${problem} />
    <${Card} title="Fetch a model"><form class="row" onSubmit=${(e) => { e.preventDefault(); if (name.trim()) fetchIt(); }}><input class="grow" aria-label="Name of a model" placeholder="smollm2-135m, or owner/repo:Q4_K_M of Hugging Face" value=${name} onInput=${(e) => setName(e.target.value)} />
      <button class="primary" disabled=${!name.trim()}>Fetch</button></form>${pulls.map((job) => html`<${Pull} key=${job.id} job=${job} />`)}<//>
    ${!found ? html`<${Wait} what="Looking in Ollama, LM Studio, llama.cpp and Hugging Face's cache" />` : !found.models.length ? html`<${Empty}>No model was found. Fetch a small one: smollm2-135m.<//>` : html`
      ${found.models.length > 8 && html`<input class="wide" type="search" aria-label="Search models" placeholder="Search" value=${search} onInput=${(e) => setSearch(e.target.value)} />`}
      <p class="hint">${bytes(found.free)} of memory are free.</p>
      <ul class="list">${rows.map((one) => { const [kind, word] = fit(one, found.free); return html`<li key=${one.name} class="tall"><div class="item"><span class="row"><b>${one.label}</b>${one.trainable ? html`<${State} state=${kind} text=${word} />` : html`<span class="state failed">not trainable</span>`}</span>
        <span>${STORES[one.store]} · ${one.architecture || 'unknown'} · ${one.type} · ${parameters(one.parameters)} parameters · ${bytes(one.bytes)}</span>${one.reason && html`<span class="hint">${one.reason}</span>`}
        ${open === one.name && html`<${Details} name=${one.name} />`}</div>
        <button class="quiet" aria-expanded=${open === one.name} onClick=${() => setOpen(open === one.name ? null : one.name)}>${open === one.name ? 'Close' : 'Details'}</button>
        ${one.trainable && html`<a class="button quiet" href="/train" onClick=${() => choose(one.name)}>${model.value === one.name ? 'Train (chosen)' : 'Train'}</a>`}</li>`; })}</ul>`}<//>`;
}

function Pull({ job }) {
  const [now, , again] = useLoad(() => get('jobs/' + job.id), [job.id, job.state]);
  useEffect(() => { if (job.state === 'running') { const t = setInterval(again, 700); return () => clearInterval(t); } }, [job.state]);
  const p = now && now.progress;
  return html`<div class="pull"><span class="row"><b>${job.name}</b> <${State} state=${job.state} />${p && job.state === 'running' && html`<span class="hint">${bytes(p.done)}${p.total ? ` of ${bytes(p.total)}` : ''}</span>`}</span>
    ${job.state === 'running' && html`<${Bar} done=${p ? p.done : 0} total=${p ? p.total : 0} label="Download" />`}${job.message && html`<span class="bad">${job.message}</span>`}</div>`;
}

function Details({ name }) {
  const [facts, problem] = useLoad(() => get('models/facts?' + query({ name })), [name]);
  if (!facts) return problem ? html`<${Problem} text=${problem} />` : html`<${Wait} />`;
  const m = facts.model, t = facts.trainable;
  return html`<dl class="facts">${m && html`<${Fact} name="Layers">${m.layers}<//><${Fact} name="Width">${count(m.width)}<//><${Fact} name="Vocabulary">${count(m.vocabulary)}<//><${Fact} name="Context">${count(m.context)}<//>`}
    ${t.ok && t.training.peak_bytes && html`<${Fact} name=${`Memory to train at -ub ${t.training.ubatch}`}>${bytes(t.training.peak_bytes)}<//>`}<${Fact} name="Chat template">${facts.chat_template ? 'its own' : 'none'}<//></dl>`;
}
