// Data: files that were uploaded, and every example as the model will see it.
import { html, signal, useEffect, useRef, useState } from '../lib.js';
import { del, get, patch, post, put, query, upload } from '../api.js';
import { go, route, setQuery } from '../router.js';
import { model, remember, remembered } from '../store.js';
import { ago, bytes, count, percent } from '../format.js';
import { Bar, Card, Choice, Confirm, Editable, Empty, Fact, Field, ModelPicker, Num, Page, Problem, Wait, busy, tell, useLoad } from '../ui.js';

const sending = signal(null);       // {name, done, total, stop}

async function send(file) {
  const stop = new AbortController();
  sending.value = { name: file.name, done: 0, total: file.size, stop };
  try {
    const made = await upload(file, { kind: 'data' }, (done, total) => { sending.value = { ...sending.value, done, total }; }, stop.signal);
    go('/data/' + made.id);
  } catch (error) {
    tell(error.message, 'bad');
  } finally {
    sending.value = null;
  }
}

export function Drop() {
  const [over, set] = useState(false), input = useRef(), [typing, type] = useState(false), [text, setText] = useState('');
  const drop = (event) => { event.preventDefault(); set(false); if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]); };
  if (sending.value) {
    const { name, done, total, stop } = sending.value;
    return html`<div class="drop"><p><b>${name}</b> ${bytes(done)} of ${bytes(total)}</p><${Bar} done=${done} total=${total} label="Upload" />
      <button onClick=${() => stop.abort()}>Stop</button></div>`;
  }
  return html`<div class=${'drop' + (over ? ' over' : '')} onDragOver=${(e) => { e.preventDefault(); set(true); }} onDragLeave=${() => set(false)} onDrop=${drop}>
    <p class="big">Drop a file here</p><p class="hint">JSONL of chats, ShareGPT, Alpaca, prompt and completion, or plain text; .gz of any</p>
    <div class="row center"><button class="primary" onClick=${() => input.current.click()}>Choose a file</button>
      <button onClick=${() => type(!typing)} aria-expanded=${typing}>Type or paste</button></div>
    <input ref=${input} type="file" hidden aria-label="Data file" onChange=${(e) => e.target.files[0] && send(e.target.files[0])} />
    ${typing && html`<div class="paste"><textarea rows="6" aria-label="Text" value=${text} onInput=${(e) => setText(e.target.value)}
      placeholder='{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'></textarea>
      <button class="primary" disabled=${!text.trim()} onClick=${busy(async () => {
        const made = await post('data/text', { text, name: text.trimStart().startsWith('{') ? 'typed.jsonl' : 'typed.txt' });
        go('/data/' + made.id);
      })}>Use this text</button></div>`}</div>`;
}

export function DataList() {
  const [rows, problem, again] = useLoad(() => get('data'), []);
  return html`<${Page} title="Data" lead="Training data. It stays on this computer.">
    <${Drop} /><${Problem} text=${problem} />
    ${!rows ? html`<${Wait} />` : !rows.length ? null : html`<${Card} title="Your data"><ul class="list">
      ${rows.map((one) => { const last = one.versions[one.versions.length - 1]; return html`<li key=${one.id}><a class="item" href=${'/data/' + one.id}>
        <b>${one.name}</b><span>${bytes(last.bytes)} · version ${last.number} · ${ago(last.created)}</span>
        ${one.note && html`<span class="hint">${one.note}</span>`}</a>
        <${Confirm} class="quiet" text="Delete" act=${busy(async () => { await del('data/' + one.id); again(); })} /></li>`; })}</ul><//>`}<//>`;
}

export function DataPage({ id }) {
  const [data, problem, again] = useLoad(() => get('data/' + id), [id]);
  const [context, setContext] = useState(Number(remembered('context', 512)));
  const version = Number(route.value.query.version) || (data ? data.versions[data.versions.length - 1].number : null);
  const asked = query({ model: model.value, context, version });
  const [look, trouble, lookAgain] = useLoad(() => data && model.value ? get(`data/${id}/look?${asked}`) : null, [id, data, asked]);
  useEffect(() => remember('context', context), [context]);
  if (!data) return html`<${Page} title="Data"><${Problem} text=${problem} />${!problem && html`<${Wait} />`}<//>`;
  const change = (reading) => put(`data/${id}/reading`, { ...data.reading, val_split: data.val_split, ...reading }).then(again, (e) => tell(e.message, 'bad'));
  const start = html`<a class=${'button primary' + (look && !look.nothing && !look.problem_count ? '' : ' off')} aria-disabled=${!(look && !look.nothing && !look.problem_count)}
    href=${'/train?' + query({ data: id, model: model.value, version })}>Train on this</a>`;
  return html`<${Page} title=${data.name || 'Data'} actions=${start}>
    <div class="row wrap"><${Editable} label="Name" value=${data.name} save=${(name) => patch('data/' + id, { name }).then(again)} />
      <a class="hint" href="/data">All data</a></div>
    <${Editable} area label="Note" value=${data.note} save=${(note) => patch('data/' + id, { note }).then(again)} />
    <${Card}><div class="grid">
      <${ModelPicker} label="As this model sees it" />
      <${Num} label="Longest example, tokens (-c)" value=${context} step="1" min="2" set=${(v) => v >= 2 && setContext(v)} />
      <${Field} label="Version"><select value=${version} onChange=${(e) => setQuery({ version: e.target.value })}>
        ${data.versions.map((v) => html`<option value=${v.number}>${v.number}: ${v.change}, ${ago(v.created)}</option>`)}</select><//>
      <${Num} label="Held out for validation, %" value=${Math.round(100 * data.val_split)} step="1" min="0" max="90"
        set=${(v) => change({ val_split: Math.min(90, Math.max(0, v || 0)) / 100 })} />
      <${Choice} label="Learned" value=${data.reading.loss} set=${(loss) => change({ loss })} options=${[['auto', 'Answers'], ['all', 'Everything']]} />
      <${Field} label="Longer examples are"><select value=${data.reading.overflow || ''} onChange=${(e) => change({ overflow: e.target.value || null })}>
        <option value="">cut (chats), split (text)</option><option value="split">split</option><option value="truncate">cut</option>
        <option value="drop">dropped</option><option value="error">refused</option></select><//>
    </div></${Card}>
    <${Problem} text=${trouble} />
    ${!look ? !trouble && (model.value ? html`<${Wait} what="Reading with the model's tokenizer" />` : null) : html`
      ${look.nothing && html`<div class="problem" role="alert"><b>Nothing can be learned from this.</b> ${look.nothing}</div>`}
      ${look.rows && look.rows.length ? html`<${Columns} rows=${look.rows} reading=${data.reading} change=${change} />` : null}
      ${look.examples > 0 && html`<${Counts} look=${look} context=${context} />`}
      ${look.problem_count > 0 && html`<${Problems} id=${id} look=${look} version=${version} done=${() => { setQuery({ version: '' }); again(); }} />`}
      ${look.examples > 0 && html`<${Examples} id=${id} look=${look} asked=${asked} version=${version} done=${() => { setQuery({ version: '' }); again().then(lookAgain); }} />`}`}
  <//>`;
}

const Counts = ({ look, context }) => {
  const top = Math.max(...look.bars, 1);
  return html`<${Card}><dl class="facts"><${Fact} name="Examples">${count(look.examples)}<//><${Fact} name="Tokens">${count(look.tokens)}<//>
    <${Fact} name="Learned">${percent(look.learned, look.tokens)} <small>${count(look.learned)}</small><//>
    <${Fact} name="Longest">${count(look.longest)}<//><${Fact} name="Longer than -c" warn=${look.too_long > 0}>${count(look.too_long)}<//></dl>
    <figure class="lengths"><div class="bars" role="img" aria-label=${`Lengths of examples, from ${look.edges[0]} to ${look.longest} tokens`}>
      ${look.bars.map((n, i) => html`<i title=${`${look.edges[i]}–${look.edges[i + 1] - 1} tokens: ${n}`} class=${look.edges[i] > context ? 'over' : ''} style=${{ height: `${n ? Math.max(4, 100 * n / top) : 0}%` }}></i>`)}</div>
      <figcaption><span>${look.edges[0]}</span><span>tokens of an example${look.too_long ? ', those longer than -c in red' : ''}</span><span>${look.longest}</span></figcaption></figure>
    ${look.notes.map((note) => html`<p class="hint">${note}</p>`)}<//>`;
};

function Columns({ rows, reading, change }) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const [chosen, set] = useState(reading.columns || {});
  const pick = (role, name) => { const next = { ...chosen }; if (name) next[role] = name; else delete next[role]; set(next); };
  return html`<${Card} title="Which column is what?"><p class="hint">The format of this file was not recognized. Its first row:</p>
    <pre class="raw">${JSON.stringify(rows[0], null, 1).slice(0, 1500)}</pre>
    <div class="grid">${[['messages', 'Messages'], ['prompt', 'Prompt'], ['completion', 'Completion'], ['text', 'Running text'], ['system', 'System message']].map(([role, label]) =>
      html`<${Field} label=${label}><select value=${chosen[role] || ''} onChange=${(e) => pick(role, e.target.value)}><option value="">–</option>
        ${names.map((name) => html`<option value=${name}>${name}</option>`)}</select><//>`)}</div>
    <button class="primary" onClick=${() => change({ columns: Object.keys(chosen).length ? chosen : null })}>Read it so</button><//>`;
}

function Problems({ id, look, version, done }) {
  const mend = busy(async () => {
    await post(`data/${id}/edit`, { version, changes: Object.fromEntries(look.problems.filter((p) => p.line).map((p) => [p.line, null])) });
    done();
  });
  return html`<${Card} class="bad" title=${`${count(look.problem_count)} lines with problems`} aside=${look.problems.some((p) => p.line) && html`<button onClick=${mend}>Remove them</button>`}>
    <ul class="problems" tabindex="0">${look.problems.slice(0, 100).map((p) => html`<li><b>${p.line ? 'Line ' + count(p.line) : 'The file'}</b> ${p.problem}</li>`)}</ul><//>`;
}

const STEP = 10;
function Examples({ id, look, asked, version, done }) {
  const start = Math.min(Number(route.value.query.from) || 0, Math.max(0, look.examples - 1));
  const [rows, problem] = useLoad(() => get(`data/${id}/examples?${asked}&start=${start}&count=${STEP}`), [id, asked, start, look]);
  const turn = (to) => setQuery({ from: Math.max(0, to) || '' });
  return html`<${Card} title="Examples" aside=${html`<nav class="row" aria-label="Examples"><button disabled=${!start} onClick=${() => turn(start - STEP)}>Earlier</button>
      <span class="hint">${start + 1}–${Math.min(start + STEP, look.examples)} of ${count(look.examples)}</span>
      <button disabled=${start + STEP >= look.examples} onClick=${() => turn(start + STEP)}>Later</button></nav>`}>
    <p class="hint"><span class="token learned">learned</span> <span class="token">not learned</span> <span class="token cut">cut off by -c</span></p>
    <${Problem} text=${problem} />${!rows && !problem && html`<${Wait} />`}
    ${rows && rows.map((one) => html`<${Example} key=${version + ':' + one.index} one=${one} id=${id} version=${version} done=${done} />`)}<//>`;
}

function Example({ one, id, version, done }) {
  const [text, edit] = useState(null);
  const save = (changes) => busy(async () => { await post(`data/${id}/edit`, { version, changes }); tell('A new version was created; the old one is kept.'); done(); });
  return html`<article class="example"><header><b>Line ${count(one.line)}</b><span class="hint">${count(one.length)} tokens, ${count(one.learned)} learned</span>
    ${one.text && text === null && html`<span class="row"><button class="quiet" onClick=${() => edit(one.text)}>Edit</button>
      <${Confirm} class="quiet" text="Delete" act=${save({ [one.line]: null })} /></span>`}</header>
    ${text === null ? html`<p class="tokens">${one.tokens.map(([piece, learned], i) => html`<span class=${'token' + (learned ? ' learned' : '') + (i < one.kept[0] || i >= one.kept[1] ? ' cut' : '')}>${visible(piece)}</span>`)}
      ${one.length > one.tokens.length && html`<span class="hint"> … ${count(one.length - one.tokens.length)} more</span>`}</p>`
    : html`<textarea rows="6" aria-label="The example's line" value=${text} onInput=${(e) => edit(e.target.value)}></textarea>
      <div class="row"><button class="primary" onClick=${save({ [one.line]: text })}>Save as a new version</button><button onClick=${() => edit(null)}>Leave it</button></div>`}</article>`;
}
export const visible = (piece) => piece.replace(/\n/g, '⏎\n').replace(/\t/g, '→\t');
export { Empty };
