// Adapters: what they are and where they come from; proof, exports, combinations, the bin.
import { html, useEffect, useRef, useState } from '../lib.js';
import { del, get, patch, post, upload } from '../api.js';
import { go } from '../router.js';
import { jobs, loadModels, model, models } from '../store.js';
import { ago, bytes, count, number, parameters, short } from '../format.js';
import { Card, Choice, Confirm, Editable, Empty, Fact, Field, ModelPicker, Num, Page, Problem, State, Wait, busy, tell, useLoad } from '../ui.js';

const Badge = ({ proof }) => proof ? html`<span class=${'state ' + (proof.ok ? 'finished' : 'failed')}>${proof.ok ? 'verified in llama.cpp' : 'proof failed'}</span>` : null;

export function Adapters() {
  const [rows, problem, again] = useLoad(() => get('adapters'), [jobs.value && jobs.value.filter((one) => one.adapter || one.kind === 'combine').map((one) => one.id + one.state).join()]);
  const [bin, , binAgain] = useLoad(() => get('bin'), [rows]);
  const [picked, pick] = useState([]), [name, setName] = useState(''), input = useRef();
  const weight = (id) => picked.find((one) => one.id === id);
  const combine = busy(async () => { const made = await post('adapters/combine', { parts: picked, name }); go('/runs/' + made.id); });
  const take = async (file) => { try { const made = await upload(file, { kind: 'adapter', model: model.value || null }, () => null); go('/adapters/' + made.id); } catch (error) { tell(error.message, 'bad'); } };
  return html`<${Page} title="Adapters" lead="Trained adapters: small files used with a model." actions=${html`<button onClick=${() => input.current.click()}>Import</button>`}>
    <input ref=${input} type="file" accept=".gguf" hidden aria-label="Adapter file" onChange=${(e) => e.target.files[0] && take(e.target.files[0])} />
    <${Problem} text=${problem} />
    ${!rows ? html`<${Wait} />` : !rows.length ? html`<${Empty}>There is no adapter yet. <a href="/train">Train one</a>.<//>` : html`<ul class="list">${rows.map((one) => html`<li key=${one.id}>
      <input type="checkbox" aria-label=${'Combine ' + one.name} checked=${!!weight(one.id)} onChange=${(e) => pick(e.target.checked ? [...picked, { id: one.id, weight: 1 }] : picked.filter((other) => other.id !== one.id))} />
      <a class="item" href=${'/adapters/' + one.id}><span class="row"><b>${one.name}</b> <${Badge} proof=${one.proof} /></span>
        <span>${short(one.model)}${one.data && one.data.name ? ` · ${one.data.name}` : ''} · rank ${one.facts.rank} · ${bytes(one.bytes)} · ${ago(one.created)}</span></a>
      <${Confirm} class="quiet" text="Delete" act=${busy(async () => { await del('adapters/' + one.id); again(); })} /></li>`)}</ul>`}
    ${picked.length > 1 && html`<${Card} title="Combine"><p class="hint">A weighted sum as one adapter.</p><div class="grid">
      ${picked.map((part) => html`<${Num} label=${(rows.find((one) => one.id === part.id) || {}).name} value=${part.weight} set=${(v) => pick(picked.map((one) => one === part ? { ...part, weight: v ?? 0 } : one))} />`)}
      <${Field} label="Name"><input value=${name} onInput=${(e) => setName(e.target.value)} /><//></div><button class="primary" disabled=${!name.trim()} onClick=${combine}>Combine</button><//>`}
    ${bin && bin.length > 0 && html`<${Card} title="Bin" aside=${html`<${Confirm} text="Empty the bin" sure="Delete for good?" act=${busy(async () => { await del('bin'); binAgain(); })} />`}><ul class="list">
      ${bin.map((one) => html`<li key=${one.id}><span class="item"><b>${one.name || one.id}</b><span>${one.kind} · ${bytes(one.bytes)}</span></span><button class="quiet" onClick=${busy(async () => { await post(`bin/${one.id}/restore`); again(); })}>Put back</button></li>`)}</ul><//>`}<//>`;
}

const FORMS = [['gguf', 'Adapter (GGUF)', 'llama.cpp, with --lora'], ['peft', 'Adapter (peft)', 'transformers'], ['merged', 'Merged model (GGUF)', 'one file for any program'],
  ['ollama', 'Ollama', 'a folder with a Modelfile'], ['lmstudio', 'LM Studio', 'the merged model in its folder']];

export function AdapterPage({ id }) {
  const mine = (jobs.value || []).filter((job) => job.parent === id && job.kind !== 'train');
  const [one, problem, again] = useLoad(() => get('adapters/' + id), [id, mine.map((job) => job.id + job.state).join()]);
  const [places] = useLoad(() => get('places'), []);
  const [form, setForm] = useState('gguf'), [place, setPlace] = useState('exports'), [name, setName] = useState(''), [type, setType] = useState('');
  useEffect(() => { if (!models.value) loadModels().catch(() => null); }, []);
  if (!one) return html`<${Page} title="Adapter"><${Problem} text=${problem} />${!problem && html`<${Wait} />`}<//>`;
  const known = one.model ? null : model.value, checking = mine.find((job) => job.kind === 'verify' && ['queued', 'running'].includes(job.state));
  const verify = busy(async () => { await post(`adapters/${id}/verify`, { model: known }); });
  const write = busy(async () => { const made = await post(`adapters/${id}/export`, { form, place, name, type: type || null, model: known }); go('/runs/' + made.id); });
  const proof = one.proof;
  return html`<${Page} title=${one.name || 'Adapter'} actions=${html`<a class="button" href=${'/compare?columns=base,' + id}>Try it</a><button class="primary" disabled=${!!checking} onClick=${verify}>${checking ? 'llama.cpp computes…' : 'Verify in llama.cpp'}</button>`}>
    <div class="row wrap"><${Badge} proof=${proof} /><${Editable} label="Name" value=${one.name} save=${(name) => patch('adapters/' + id, { name }).then(again)} /><a class="hint" href="/adapters">All adapters</a></div>
    <${Editable} area label="Note" value=${one.note} save=${(note) => patch('adapters/' + id, { note }).then(again)} />
    ${!one.model && html`<${Card}><${ModelPicker} label="Its model" /><//>`}
    <${Card}><dl class="facts"><${Fact} name="Rank">${one.facts.rank}<//><${Fact} name="Alpha">${number(one.facts.alpha)}<//><${Fact} name="Parameters">${parameters(one.facts.parameters)}<//><${Fact} name="File">${bytes(one.bytes)}<//><${Fact} name="SHA-256"><code>${one.facts.sha256.slice(0, 12)}</code><//></dl><//>
    <${Card} title="Origin"><dl class="spec">
      <div><dt>model</dt><dd>${short(one.model) || one.facts.base_name || 'not known'}</dd></div>
      ${one.data && one.data.id && html`<div><dt>data</dt><dd><a href=${`/data/${one.data.id}?version=${one.data.version}`}>${one.data.name}, version ${one.data.version}</a></dd></div>`}
      ${one.run && html`<div><dt>run</dt><dd><a href=${'/runs/' + one.run}>${one.name}</a></dd></div>`}
      ${one.parent && html`<div><dt>based on</dt><dd><a href=${'/runs/' + one.parent}>an earlier run</a></dd></div>`}
      ${one.start && html`<div><dt>continued from</dt><dd><a href=${'/adapters/' + one.start}>another adapter</a></dd></div>`}
      ${one.made_of.map((part) => html`<div><dt>${number(part.weight)} ×</dt><dd><a href=${'/adapters/' + part.id}>${part.name}</a></dd></div>`)}
      <div><dt>made</dt><dd>${ago(one.created)}</dd></div></dl><//>
    ${proof && html`<${Card} title="Proof"><p class="hint">Next-token distributions of llama.cpp against anytune's, for exactly this file.</p><div class="scroll" tabindex="0" role="region" aria-label="Table"><table><thead><tr><th scope="col"></th><th scope="col">mean KL</th><th scope="col">limit</th><th scope="col">same most likely token</th></tr></thead><tbody>
      ${[['without adapter', proof.facts.base], ['with adapter', proof.facts.with_adapter]].filter(([, f]) => f).map(([what, f]) => html`<tr><th scope="row">${what}</th><td>${number(f.kl_mean, 3)}</td><td>${number(f.limit)}</td><td>${Math.round(f.top1_agreement * f.positions)} of ${f.positions}</td></tr>`)}</tbody></table></div><//>`}
    <${Card} title="Export"><${Choice} label="For" value=${form} set=${setForm} options=${FORMS.map(([key, label]) => [key, label])} /><p class="hint">${FORMS.find(([key]) => key === form)[2]}${form === 'ollama' && places && !places.ollama ? '; Ollama was not found' : ''}${form === 'lmstudio' && places && !places.lmstudio ? '; LM Studio was not found' : ''}</p>
      <div class="grid"><${Field} label="Name"><input value=${name} placeholder=${one.name} onInput=${(e) => setName(e.target.value)} /><//>
      <${Field} label="To"><select value=${place} onChange=${(e) => setPlace(e.target.value)}>${((places && places.places) || []).map((p) => html`<option value=${p.name}>${p.name === 'exports' ? "The studio's folder" : p.name} · ${bytes(p.free)} free</option>`)}</select><//>
      ${['merged', 'ollama', 'lmstudio'].includes(form) && html`<${Field} label="Weight type"><select value=${type} onChange=${(e) => setType(e.target.value)}><option value="">smallest that preserves the adapter</option>${['same', 'Q4_K_M', 'Q6_K', 'Q8_0', 'F16'].map((t) => html`<option value=${t}>${t}</option>`)}</select><//>`}</div>
      <div class="row"><button class="primary" onClick=${write}>Export</button><a class="button" download href=${`/api/adapters/${id}/file`}>Download the adapter</a></div><//>
    <${Card} title="Serve"><p class="hint">OpenAI's API for other programs on this computer, with the model and the adapter. Download the adapter, and run in its folder</p><pre><code>${'anytune serve -m ' + (one.model ? short(one.model) : 'MODEL') + ' --lora ' + one.file}</code></pre><//>
    ${mine.length > 0 && html`<${Card} title="Jobs"><ul class="list">${mine.slice(0, 20).map((job) => html`<li><a class="item" href=${'/runs/' + job.id}><span class="row"><b>${job.name}</b> <${State} state=${job.state} /></span>${job.message && html`<span class="bad">${job.message}</span>`}</a></li>`)}</ul><//>`}<//>`;
}
export { count };
