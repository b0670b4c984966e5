// One run: its curves, what it answers at each checkpoint, which words it still finds hard, its log.
import { html, signal, useEffect, useMemo, useState } from '../lib.js';
import { get, patch } from '../api.js';
import { jobs } from '../store.js';
import { count, duration, number, short } from '../format.js';
import { Bar, Card, Editable, Fact, Page, Problem, State, Wait, tell, useLoad } from '../ui.js';
import { Chart, Zoom } from '../chart.js';
import { Actions, WORDS } from './runs.js';
import { visible } from './data.js';

const NAMES = ['step', 'epoch', 'loss', 'val_loss', 'lr', 'grad_norm', 'tokens', 'tokens_per_s', 'rss_bytes'];
const MOST = 3000;      // live points kept beside the view
const empty = () => Object.fromEntries(NAMES.map((name) => [name, []]));

// The points of a run: a view of all of it, and live points behind it.
export function usePoints(id, range) {
  const [points] = useState(() => signal(empty())), [log] = useState(() => signal([])), [looks] = useState(() => signal([]));
  const [bounds] = useState(() => signal([1, 1]));
  useEffect(() => {
    let source = null, ended = false, wait = 0;
    const load = async (quick) => {
      const [low, high] = range.value || [1, 2 ** 50];
      const found = await get(`jobs/${id}/series?points=1000&first=${Math.max(1, Math.floor(low))}&last=${Math.ceil(high)}${quick ? '&quick=true' : ''}`);
      if (ended) return found;
      points.value = found.columns;
      const steps = found.columns.step;
      if (!range.value && steps.length) bounds.value = [steps[0], steps[steps.length - 1]];
      return found;
    };
    const fine = range.subscribe((to) => { clearTimeout(wait); if (source && bounds.value[1] > 1500) wait = setTimeout(() => load(false).catch(() => null), 150); });
    (async () => {
      let found = await load(true);
      if (found.rough) found = await load(false);
      if (ended) return;
      source = new EventSource(`/api/jobs/${id}/events?after=${found.step}`);
      source.addEventListener('points', (event) => {
        const rows = JSON.parse(event.data), next = { ...points.value };
        const last = next.step[next.step.length - 1] || 0, fresh = rows.filter((row) => row[0] > last);
        if (!fresh.length) return;
        bounds.value = [bounds.value[0], fresh[fresh.length - 1][0]];
        if (range.value && fresh[0][0] > range.value[1]) return;
        NAMES.forEach((name, i) => { next[name] = next[name].concat(fresh.map((row) => row[i])); });
        points.value = next;
        if (next.step.length > MOST && !range.value) load(false).catch(() => null);
      });
      source.addEventListener('back', (event) => {
        const step = JSON.parse(event.data), keep = points.value.step.filter((one) => one <= step).length;
        points.value = Object.fromEntries(NAMES.map((name) => [name, points.value[name].slice(0, keep)]));
      });
      source.addEventListener('log', (event) => { log.value = [...log.value, ...JSON.parse(event.data)].slice(-3000); });
      source.addEventListener('look', (event) => { const one = JSON.parse(event.data); looks.value = [...looks.value.filter((other) => other.step !== one.step), one].sort((a, b) => a.step - b.step); });
      source.onopen = () => { log.value = []; };
    })().catch((error) => tell(error.message, 'bad'));
    const wake = () => { if (!document.hidden && source && source.readyState === 2) load(false).catch(() => null); };
    document.addEventListener('visibilitychange', wake);
    return () => { ended = true; fine(); clearTimeout(wait); document.removeEventListener('visibilitychange', wake); if (source) source.close(); };
  }, [id]);
  return { points, log, looks, bounds };
}

export function Run({ id }) {
  const row = (jobs.value || []).find((one) => one.id === id);
  const [job, problem, again] = useLoad(() => get('jobs/' + id), [id, row && row.state]);
  if (!job) return html`<${Page} title="Run"><${Problem} text=${problem} />${!problem && html`<${Wait} />`}<//>`;
  const now = { ...job, ...row };
  return html`<${Page} title=${now.name || 'Run'} actions=${html`<${Actions} job=${now} again=${true} />`}>
    <div class="row wrap"><${State} state=${now.state} /><${Editable} label="Name" value=${now.name} save=${(name) => patch('jobs/' + id, { name })} /><a class="hint" href="/runs">All runs</a></div>
    ${now.message && html`<div class=${['failed', 'crashed'].includes(now.state) ? 'problem' : 'notice'}>${now.message}</div>`}
    ${now.kind === 'train' ? html`<${Training} id=${id} job=${now} />` : html`<${Work} job=${now} />`}
    <${Editable} area label="Note" value=${now.note} save=${(note) => patch('jobs/' + id, { note }).then(again)} /><//>`;
}

function Training({ id, job }) {
  const range = useMemo(() => signal(null), [id]);
  const { points, log, looks, bounds } = usePoints(id, range);
  const p = points.value, last = p.step.length - 1, step = last >= 0 ? bounds.value[1] : job.step;
  const best = p.val_loss.reduce((low, v) => v !== null && (low === null || v < low) ? v : low, null);
  const loss = useMemo(() => [p.step, p.loss, p.val_loss], [p]);
  const one = (name) => useMemo(() => [p.step, p[name]], [p]);
  const lr = one('lr'), norm = one('grad_norm'), speed = one('tokens_per_s'), memory = useMemo(() => [p.step, p.rss_bytes.map((v) => v === null ? null : v / 2 ** 20)], [p]);
  const left = job.state === 'running' && job.total && last > 0 ? (job.total - step) * avg(p.tokens) / Math.max(avg(p.tokens_per_s.slice(-20)), 1e-9) : null;
  return html`
    ${job.total && html`<${Bar} done=${step} total=${job.total} label="Steps" />`}
    <dl class="facts"><${Fact} name="Step">${count(step)} <small>of ${count(job.total)}</small><//><${Fact} name="Loss">${number(last >= 0 ? p.loss[last] : null)}<//>
      <${Fact} name="Best validation">${number(best)}<//><${Fact} name="Tokens per second">${last >= 0 ? count(Math.round(p.tokens_per_s[last])) : '–'}<//>
      <${Fact} name="Time left (estimate)">${left === null ? '–' : duration(left)}<//></dl>
    ${job.adapter && html`<p><a class="button primary" href=${'/adapters/' + id}>Its adapter</a> <a class="button" href=${'/compare?columns=base,' + id}>Try it beside the base</a></p>`}
    <${Card} title="Curves" points=${p.step.length} aside=${html`<${Zoom} range=${range} first=${bounds.value[0]} last=${bounds.value[1]} />`}>
      ${last < 0 ? html`<p class="hint">${job.state === 'queued' ? 'It waits for the run before it.' : 'The first step has not ended yet.'}</p>` : html`
      <${Chart} title="Loss" note="nats per token; dots: validation" range=${range} data=${loss} lines=${[{ label: 'training', colour: '--line-1' }, { label: 'validation', colour: '--line-2', dots: true }]} />
      <div class="two"><${Chart} title="Learning rate" range=${range} data=${lr} lines=${[{ label: 'rate', colour: '--line-3' }]} />
      <${Chart} title="Gradient norm" range=${range} data=${norm} lines=${[{ label: 'norm', colour: '--line-4' }]} />
      <${Chart} title="Tokens per second" range=${range} data=${speed} lines=${[{ label: 'tokens/s', colour: '--line-5' }]} />
      <${Chart} title="Memory" note="MiB" range=${range} data=${memory} lines=${[{ label: 'MiB', colour: '--line-6' }]} /></div>`}<//>
    <${Looks} looks=${looks.value} prompts=${job.spec ? job.spec.prompts || [] : []} />
    <${Card} title="Settings"><${Spec} spec=${job.spec} /><//>
    <${Card} title="Log"><pre class="log" tabindex="0" aria-label="Log">${(log.value.length ? log.value : job.log || []).join('\n') || 'Nothing yet.'}</pre><//>`;
}

// The same prompts at each checkpoint side by side, and samples whose hard words glow.
function Looks({ looks, prompts }) {
  const [at, set] = useState(null);
  if (!looks.length) return null;
  const shown = looks.length <= 4 ? looks : [looks[0], ...looks.slice(-3)];
  const one = looks.find((look) => look.step === at) || looks[looks.length - 1];
  return html`<${Card} title="Sample answers"><div class="scroll" tabindex="0" role="region" aria-label="Table">
      <table class="answers"><thead><tr><th scope="col">Prompt</th>${shown.map((look) => html`<th scope="col">${look.step ? 'Step ' + count(look.step) : 'Base'}</th>`)}</tr></thead>
      <tbody>${prompts.map((prompt, i) => html`<tr><th scope="row">${prompt}</th>${shown.map((look) => html`<td>${look.answers[i]}</td>`)}</tr>`)}</tbody></table></div><//>
    <${Card} title="Hardest tokens" aside=${html`<label class="row">Step <select value=${one.step} onChange=${(e) => set(Number(e.target.value))}>${looks.map((look) => html`<option value=${look.step}>${look.step}</option>`)}</select></label>`}>
      <p class="hint">Loss of each learned token: ${[0, 1, 2, 3, 4].map((k) => html`<span class=${'token heat' + k}>${['under ½', '½ to 1', '1 to 2', '2 to 4', 'over 4'][k]}</span> `)}</p>
      ${one.samples.map((sample) => html`<p class="tokens">${sample.tokens.map(([piece, nats]) => html`<span class=${'token' + (nats === null ? '' : ' heat' + heat(nats))} title=${nats === null ? 'not learned' : `${nats} nats`}>${visible(piece)}</span>`)}</p>`)}<//>`;
}
const heat = (nats) => nats < 0.5 ? 0 : nats < 1 ? 1 : nats < 2 ? 2 : nats < 4 ? 3 : 4;
const avg = (values) => values.reduce((sum, v) => sum + (v || 0), 0) / Math.max(1, values.length);

const Spec = ({ spec }) => spec ? html`<dl class="spec">${[['model', short(spec.model && spec.model.name)], ['data', spec.data && `${spec.data.name}, version ${spec.data.version}`],
  ...Object.entries(spec.lora || {}), ...Object.entries(spec.settings || {}), ['validation', spec.val_split], ['device', spec.device]].filter(([, v]) => v !== undefined && v !== null)
  .map(([k, v]) => html`<div><dt>${k}</dt><dd>${String(v)}</dd></div>`)}</dl>` : null;

function Work({ job }) {
  const [files] = useLoad(() => job.kind === 'export' && job.state === 'finished' ? get(`jobs/${job.id}/files`) : null, [job.state]);
  const [fresh, , again] = useLoad(() => get('jobs/' + job.id), [job.id, job.state]);
  useEffect(() => { if (job.state === 'running') { const t = setInterval(again, 1000); return () => clearInterval(t); } }, [job.state]);
  const now = fresh || job, facts = now.result && now.result.facts;
  return html`<p class="hint">${WORDS[job.kind] || job.kind}</p>
    ${now.progress && job.state === 'running' && html`<${Bar} done=${now.progress.done} total=${now.progress.total} label="Progress" />`}
    ${now.result && now.result.ok !== undefined && html`<div class=${now.result.ok ? 'notice good' : 'problem'}>${now.result.ok ? 'Done.' : 'The check failed: the figures below say what differs.'}</div>`}
    ${job.kind === 'evaluate' && job.state === 'finished' && html`<p><a class="button primary" href=${`/api/jobs/${job.id}/report`} target="_blank" rel="noopener">Open the report</a></p>
      <iframe class="report" title="Report" src=${`/api/jobs/${job.id}/report`} sandbox="" loading="lazy"></iframe>`}
    ${files && html`<${Card} title="Files"><ul class="list">${files.map((file) => html`<li><a class="item" download href=${`/api/jobs/${job.id}/files/${file.name}`}><b>${file.name}</b><span>${count(file.bytes)} bytes</span></a></li>`)}</ul><//>`}
    ${job.kind === 'adapt' && job.state === 'finished' && html`<p><a class="button primary" href=${'/adapters/' + job.id}>Its adapter</a></p>`}
    ${now.result && now.result.adapter && html`<p><a class="button primary" href=${'/adapters/' + now.result.adapter}>The combined adapter</a></p>`}
    ${facts && html`<details><summary>Figures</summary><pre class="raw">${JSON.stringify(facts, null, 1).slice(0, 20000)}</pre></details>`}
    <${Card} title="Log"><pre class="log" tabindex="0" aria-label="Log">${(now.log || []).join('\n') || 'Nothing yet.'}</pre><//>`;
}
