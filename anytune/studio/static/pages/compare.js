// Compare: curves of several runs over each other, and one prompt asked of base and adapters side by side.
import { html, signal, useEffect, useMemo, useState } from '../lib.js';
import { get, post, stream } from '../api.js';
import { route, setQuery } from '../router.js';
import { choose, jobs, model } from '../store.js';
import { Card, Choice, Confirm, Empty, Field, ModelPicker, Num, Page, Problem, Wait, busy, tell, useLoad } from '../ui.js';
import { Chart, Zoom, COLOURS } from '../chart.js';
import { Markdown } from '../markdown.js';
import { number } from '../format.js';
import { usePoints } from './run.js';

export function Compare() {
  const tab = route.value.query.runs !== undefined ? 'runs' : 'chat';
  return html`<${Page} title="Compare">
    <div class="tabs" role="tablist"><button role="tab" aria-selected=${tab === 'chat'} onClick=${() => setQuery({ runs: null })}>Answers</button>
      <button role="tab" aria-selected=${tab === 'runs'} onClick=${() => { const all = (jobs.value || []).filter((j) => j.kind === 'train').slice(0, 2).map((j) => j.id); setQuery({ runs: all.join(',') || '-' }); }}>Curves</button></div>
    ${tab === 'runs' ? html`<${Curves} />` : html`<${Chat} />`}<//>`;
}

// Curves

const MEASURES = [['loss', 'Loss'], ['val_loss', 'Validation'], ['grad_norm', 'Gradient'], ['tokens_per_s', 'Speed']];
const ROWS = 6;
function Curves() {
  const ids = (route.value.query.runs || '').split(',').filter((id) => id && id !== '-').slice(0, ROWS);
  const [measure, set] = useState('loss'), range = useMemo(() => signal(null), []);
  const runs = (jobs.value || []).filter((job) => job.kind === 'train');
  const toggle = (id) => setQuery({ runs: (ids.includes(id) ? ids.filter((one) => one !== id) : [...ids, id]).join(',') || '-' });
  if (!jobs.value) return html`<${Wait} />`;
  if (!runs.length) return html`<${Empty}>There are no runs to compare yet.<//>`;
  return html`<${Card}><${Choice} label="What" value=${measure} set=${set} options=${MEASURES} />
    <div class="picks">${runs.slice(0, 60).map((job) => { const at = ids.indexOf(job.id); return html`<label class=${'pick' + (at < 0 ? '' : ' on')}><input type="checkbox" checked=${at >= 0} disabled=${at < 0 && ids.length >= ROWS}
      onChange=${() => toggle(job.id)} /><i class=${'dot c' + at}></i>${job.name}</label>`; })}</div><//>
    ${ids.length > 0 && html`<${Overlay} key=${ids.join()} ids=${ids} measure=${measure} range=${range} names=${ids.map((id) => (runs.find((job) => job.id === id) || {}).name || id)} />`}`;
}

function Overlay({ ids, measure, range, names }) {
  const all = ids.map((id) => usePoints(id, range));
  const steps = [...new Set(all.flatMap((one) => one.points.value.step))].sort((a, b) => a - b);
  const data = [steps, ...all.map((one) => {
    const p = one.points.value, at = new Map(p.step.map((s, i) => [s, p[measure][i]]));
    return steps.map((s) => at.has(s) ? at.get(s) : null);
  })];
  const last = Math.max(1, ...all.map((one) => one.bounds.value[1]));
  return html`<${Card} title=${MEASURES.find(([key]) => key === measure)[1]} aside=${html`<${Zoom} range=${range} first=${1} last=${last} />`}>
    ${steps.length ? html`<${Chart} title="" range=${range} data=${data} lines=${ids.map((id, i) => ({ label: names[i], colour: COLOURS[i], dots: measure === 'val_loss' }))} />` : html`<${Wait} />`}<//>`;
}

// Answers

const LETTERS = 'ABCDEF';
function Chat() {
  const [adapters, problem] = useLoad(() => get('adapters'), []);
  const [tally, , count] = useLoad(() => get('votes'), []);
  const chosen = (route.value.query.columns || 'base').split(',');
  const setColumns = (columns) => setQuery({ columns: columns.join(',') });
  const [prompt, setPrompt] = useState(''), [system, setSystem] = useState(''), [seed, setSeed] = useState(0), [temperature, setT] = useState(0.7), [tokens, setTokens] = useState(200);
  const [blind, setBlind] = useState(false), [turn, setTurn] = useState(null), [abort, setAbort] = useState(null);
  const nameOf = (id) => id === 'base' ? 'Base' : ((adapters || []).find((one) => one.id === id) || {}).name || id;
  useEffect(() => { const first = chosen.find((id) => id !== 'base'), one = adapters && adapters.find((a) => a.id === first); if (one && one.model) choose(one.model); }, [adapters]);

  const ask = async () => {
    const order = blind ? shuffled(chosen) : chosen, stop = new AbortController();
    const answers = order.map((id) => ({ id, text: '', end: null }));
    setAbort(stop);
    setTurn({ prompt, answers, blind, voted: false, open: !blind });
    try {
      await stream('compare', { model: model.value, columns: order.map((id) => id === 'base' ? null : id), messages: [{ role: 'user', content: prompt }], system: system || null,
        seed, temperature, max_tokens: tokens }, (event, item) => {
        if (event === 'problem') return tell(item.error, 'bad');
        if (event === 'piece') answers[item.column].text += item.text;
        if (event === 'end') answers[item.column].end = item;
        setTurn((old) => ({ ...old, answers: [...answers] }));
      }, stop.signal);
    } catch (error) { if (error.name !== 'AbortError') tell(error.message, 'bad'); }
    setAbort(null);
    setTurn((old) => old && { ...old, done: true });
  };
  const vote = busy(async (column) => {
    await post('votes', { prompt: turn.prompt, model: model.value, columns: turn.answers.map((one) => one.id === 'base' ? null : one.id), chosen: column, blind: turn.blind });
    setTurn({ ...turn, voted: true, open: true });
    count();
  });
  return html`<${Problem} text=${problem} /><${Card}><div class="grid"><${ModelPicker} />
      <${Num} label="Seed" value=${seed} set=${(v) => setSeed(Math.max(0, v || 0))} step="1" min="0" /><${Num} label="Temperature" value=${temperature} set=${(v) => setT(v ?? 0)} min="0" />
      <${Num} label="Maximum tokens" value=${tokens} set=${(v) => setTokens(Math.max(1, v || 1))} step="1" min="1" /></div>
    <fieldset class="choice"><legend class="label">Columns</legend><div class="picks">${['base', ...(adapters || []).map((one) => one.id)].map((id) => html`<label class=${'pick' + (chosen.includes(id) ? ' on' : '')}>
      <input type="checkbox" checked=${chosen.includes(id)} disabled=${!chosen.includes(id) && chosen.length >= 6} onChange=${() => { const next = chosen.includes(id) ? chosen.filter((one) => one !== id) : [...chosen, id]; if (next.length) setColumns(next); }} />${nameOf(id)}</label>`)}</div></fieldset>
    <details><summary>System message</summary><textarea rows="2" aria-label="System message" value=${system} onInput=${(e) => setSystem(e.target.value)}></textarea></details>
    <textarea class="prompt" rows="3" aria-label="Prompt" placeholder="Ask all of them the same" value=${prompt} onInput=${(e) => setPrompt(e.target.value)}
      onKeyDown=${(e) => { if (e.key === 'Enter' && (e.ctrlKey || e.metaKey) && prompt.trim() && !abort) ask(); }}></textarea>
    <div class="row"><button class="primary" disabled=${!prompt.trim() || !!abort || !model.value} onClick=${ask}>Ask</button>${abort && html`<button onClick=${() => abort.abort()}>Stop</button>`}
      <label class="row"><input type="checkbox" checked=${blind} onChange=${(e) => setBlind(e.target.checked)} /> Blind: names are shown after the vote</label></div><//>
    ${turn && html`<div class="columns" tabindex="0" role="region" aria-label="Answers" style=${{ '--n': turn.answers.length }}>${turn.answers.map((one, i) => html`<section class="column" aria-label=${'Answer ' + LETTERS[i]}>
      <header><b>${turn.open ? nameOf(one.id) : LETTERS[i]}</b>${turn.open && one.end && html`<span class="hint">${one.end.hash ? one.end.hash.slice(0, 10) : 'no adapter'} · KL to base <b>${one.end.kl === null ? '–' : number(one.end.kl, 3)}</b></span>`}</header>
      <${Markdown} text=${one.text} />${!one.text && !turn.done && html`<${Wait} what="Thinking" />`}
      ${turn.done && !turn.voted && turn.answers.length > 1 && html`<button onClick=${() => vote(i)}>${LETTERS[i]} is best</button>`}</section>`)}</div>
      ${turn.done && !turn.voted && turn.answers.length > 1 && html`<p class="row center"><button onClick=${() => vote(null)}>All as good</button></p>`}`}
    ${tally && tally.votes > 0 && html`<${Card} title=${`Tally of ${tally.votes} votes`}><div class="scroll" tabindex="0" role="region" aria-label="Table"><table><thead><tr><th scope="col">Adapter</th><th scope="col">shown</th><th scope="col">best</th><th scope="col">as good</th></tr></thead><tbody>
      ${Object.entries(tally.tally).map(([id, one]) => html`<tr><th scope="row">${nameOf(id)}</th><td>${one.shown}</td><td>${one.won}</td><td>${one.drew}</td></tr>`)}</tbody></table></div><//>`}`;
}
function shuffled(values) {
  const all = [...values];
  for (let i = all.length - 1; i > 0; i--) { const k = Math.floor(Math.random() * (i + 1)); [all[i], all[k]] = [all[k], all[i]]; }
  return all;
}
export { Confirm, Field };
