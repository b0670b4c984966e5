// Train: a preset, the few numbers that matter, what it will take; everything else behind "More".
import { html, useEffect, useState } from '../lib.js';
import { get, post, query } from '../api.js';
import { go, route, setQuery } from '../router.js';
import { choose, loadModels, model, models } from '../store.js';
import { bytes, count, duration, parameters } from '../format.js';
import { Card, Choice, Fact, Field, ModelPicker, Num, Page, Problem, Wait, busy, useLoad } from '../ui.js';

const NAMES = { quick: 'Quick look', good: 'Good', thorough: 'Thorough' };
const TEXTS = { quick: 'A few minutes: does it learn at all?', good: 'Right for most data.', thorough: 'Longer, with validation, until it stops improving.' };
const START = { settings: { context: 512, ubatch: 512, batch: 2048, epochs: 2, lr: 2e-4 }, lora: { rank: 16, alpha: 32 }, val_split: null };

export function Train() {
  const { data, version, from } = route.value.query;
  const [sets, problem] = useLoad(() => get('data'), []);
  const [plan, set] = useState(START), [preset, setPreset] = useState(null), [prompts, setPrompts] = useState(['', '', '']), [name, setName] = useState('');
  const [facts, setFacts] = useState(null), [starting, setStarting] = useState('');
  const one = sets && sets.find((row) => row.id === data);
  const [presets, trouble] = useLoad(() => data && model.value ? get('presets?' + query({ model: model.value, data, version })) : null, [data, model.value, version, sets]);
  const [adapters] = useLoad(() => get('adapters'), []);

  useEffect(() => { if (route.value.query.model) choose(route.value.query.model); if (!models.value) loadModels().catch(() => null); }, []);
  useEffect(() => { if (sets && !data && sets.length) setQuery({ data: sets[0].id }); }, [sets]);
  useEffect(() => {   // "again with changes": begin with what that run was told
    if (from) get('jobs/' + from).then(({ spec }) => {
      choose(spec.model.name);
      set({ settings: spec.settings, lora: spec.lora, val_split: spec.val_split, memory: spec.memory, device: spec.device });
      setPrompts([...(spec.prompts || []), '', '', ''].slice(0, 3));
      setPreset('changed');
      setQuery({ data: spec.data.id, version: spec.data.version });
    }, () => null);
  }, [from]);
  useEffect(() => { if (presets && !preset) take('good'); }, [presets]);
  useEffect(() => {   // three prompts out of the data, if none were typed
    if (data && model.value && !from) get(`data/${data}/examples?` + query({ model: model.value, version, count: 3 })).then((rows) =>
      setPrompts((old) => old.some(Boolean) ? old : [...rows.map((row) => promptOf(row.text)), '', '', ''].slice(0, 3)), () => null);
  }, [data, model.value]);

  function take(key) { setPreset(key); set({ ...START, ...presets[key], settings: presets[key].settings, lora: presets[key].lora }); }
  const knob = (part, key) => (value) => { setPreset('own'); set((old) => ({ ...old, [part]: clean({ ...old[part], [key]: value }) })); };
  const s = plan.settings, l = plan.lora;
  const asked = { model: model.value, data, version: version ? Number(version) : null, settings: s, lora: l, memory: plan.memory || null, device: plan.device || 'auto' };
  const told = JSON.stringify(asked);
  useEffect(() => {   // live, but not at every keystroke
    if (!data || !model.value) return;
    let mine = true;
    const wait = setTimeout(() => post('estimate', asked).then((found) => mine && setFacts(found), (error) => mine && setFacts({ problem: error.message })), 250);
    return () => { mine = false; clearTimeout(wait); };
  }, [told]);

  const start = busy(async () => {
    setStarting('');
    try {
      const made = await post('runs', { ...asked, val_split: plan.val_split, prompts: prompts.filter((text) => text.trim()), name, parent: from || null, start_from: plan.start_from || null });
      go('/runs/' + made.id);
    } catch (error) { setStarting(error.message); }
  });
  const blocked = !data || !model.value || !facts || facts.problem || trouble;
  return html`<${Page} title="Train" lead=${from ? 'Another run, with changes. The first one is kept.' : 'Train an adapter for a model on your data.'}>
    <${Problem} text=${problem} />
    <${Card}><div class="grid"><${ModelPicker} />
      <${Field} label="Data"><select value=${data || ''} onChange=${(e) => setQuery({ data: e.target.value, version: '' })}>
        ${!data && html`<option value="">Choose…</option>`}${(sets || []).map((row) => html`<option value=${row.id}>${row.name}</option>`)}</select><//></div>
      ${sets && !sets.length && html`<p>There is no data yet. <a href="/data">Upload some</a> first.</p>`}
      ${one && html`<p class="hint">Version ${version || one.versions[one.versions.length - 1].number}. <a href=${'/data/' + data}>See what is learned</a></p>`}<//>
    <${Problem} text=${trouble} />
    ${presets && html`<div class="presets" role="group" aria-label="Presets">${Object.keys(NAMES).map((key) => html`<button class=${'preset' + (preset === key ? ' on' : '')} aria-pressed=${preset === key}
      onClick=${() => take(key)}><b>${NAMES[key]}</b><span>${TEXTS[key]}</span></button>`)}</div>`}
    <${Card} title="What matters"><div class="grid">
      <${Num} label="Rank" hint="Capacity of the adapter" value=${l.rank} step="1" min="1" set=${knob('lora', 'rank')} />
      <${Num} label="Alpha" hint=${l.rank ? `Scaled by ${(l.alpha / l.rank).toPrecision(2)}` : ''} value=${l.alpha} set=${knob('lora', 'alpha')} />
      <${Num} label="Tokens per step (-b)" hint="Fewer: more, noisier steps" value=${s.batch} step="1" set=${knob('settings', 'batch')} />
      <${Num} label="Learning rate" hint="2e-4 is usual" value=${s.lr} set=${knob('settings', 'lr')} />
      <${Num} label="Passes over the data" value=${s.epochs} step="1" min="1" set=${knob('settings', 'epochs')} />
      <${Num} label="Maximum steps" value=${s.max_steps} step="1" min="1" set=${knob('settings', 'max_steps')} />
      <${Num} label="Longest example (-c)" value=${s.context} step="1" min="2" set=${knob('settings', 'context')} />
      <${Num} label="Held out for validation, %" value=${plan.val_split === null ? Math.round(100 * ((one && one.val_split) || 0)) : Math.round(100 * plan.val_split)} min="0" max="90" step="1"
        set=${(v) => { setPreset('own'); set({ ...plan, val_split: (v || 0) / 100 }); }} /></div>
      <details><summary>More</summary><div class="grid">
        <${Num} label="Micro-batch, tokens (-ub)" hint="Computed at once; determines memory" value=${s.ubatch} step="1" set=${knob('settings', 'ubatch')} />
        <${Choice} label="Rate falls" value=${s.scheduler || 'cosine'} set=${knob('settings', 'scheduler')} options=${[['cosine', 'cosine'], ['linear', 'linear'], ['constant', 'not']]} />
        <${Num} label="Warm-up, fraction of steps" value=${s.warmup_ratio ?? 0.03} set=${knob('settings', 'warmup_ratio')} />
        <${Num} label="Weight decay" value=${s.weight_decay ?? 0.01} set=${knob('settings', 'weight_decay')} />
        <${Num} label="Gradient norm clipped to" value=${s.max_grad_norm ?? 1} set=${knob('settings', 'max_grad_norm')} />
        <${Num} label="Dropout" value=${l.dropout ?? 0} set=${knob('lora', 'dropout')} />
        <${Field} label="Modules"><input value=${l.modules || 'all'} onChange=${(e) => knob('lora', 'modules')(e.target.value || 'all')} /><//>
        <${Choice} label="Scale by" value=${l.rslora ? 'root' : 'rank'} set=${(v) => knob('lora', 'rslora')(v === 'root')} options=${[['rank', 'alpha / rank'], ['root', 'alpha / √rank']]} />
        <${Num} label="Learning rate of B over A (LoRA+)" value=${l.plus_ratio ?? 1} set=${knob('lora', 'plus_ratio')} />
        <${Num} label="Checkpoint every, steps" value=${s.checkpoint_save_steps ?? 100} step="1" min="0" set=${knob('settings', 'checkpoint_save_steps')} />
        <${Num} label="Validate every, steps" hint="0: after each epoch" value=${s.val_every ?? 0} step="1" min="0" set=${knob('settings', 'val_every')} />
        <${Num} label="Early stop, validations without improvement" hint="0: never" value=${s.early_stop ?? 0} step="1" min="0" set=${knob('settings', 'early_stop')} />
        <${Num} label="Seed" value=${s.seed ?? 42} step="1" min="0" set=${knob('settings', 'seed')} />
        <${Num} label="Memory limit, MiB" value=${plan.memory ? Math.round(plan.memory / 1048576) : null} step="1" min="1" set=${(v) => set({ ...plan, memory: v ? v * 1048576 : null })} />
        <${Field} label="Device"><input value=${plan.device || 'auto'} onChange=${(e) => set({ ...plan, device: e.target.value || 'auto' })} /><//>
        <${Field} label="Go on from"><select value=${plan.start_from || ''} onChange=${(e) => set({ ...plan, start_from: e.target.value || null })}><option value="">none: a new adapter</option>
          ${(adapters || []).map((a) => html`<option value=${a.id}>${a.name}</option>`)}</select><//>
      </div></details><//>
    <${Card} title="Watch it change"><p class="hint">The same prompts are answered before the first step and at each checkpoint.</p>
      ${prompts.map((text, i) => html`<input class="wide" aria-label=${'Prompt ' + (i + 1)} placeholder=${'Prompt ' + (i + 1)} value=${text}
        onInput=${(e) => setPrompts(prompts.map((old, k) => k === i ? e.target.value : old))} />`)}<//>
    <${Closed} data=${data} context=${s.context} rank=${l.rank} />
    <div class="dock"><${Estimate} facts=${facts} /><${Problem} text=${starting} />
      <div class="row"><input class="grow" aria-label="Name of the run" placeholder="Name (optional)" value=${name} onInput=${(e) => setName(e.target.value)} />
        <button class="primary large" disabled=${!!blocked} onClick=${start}>Start training</button></div></div><//>`;
}

// The closed form: no gradients, a minute instead of many; for what a system message makes of the model.
function Closed({ data, context, rank }) {
  const [system, set] = useState('');
  const start = busy(async () => { const made = await post('adapt', { model: model.value, data, system, rank, context: context || 512 }); go('/runs/' + made.id); });
  return html`<${Card}><details><summary>Instead of training: a system message as an adapter</summary><p class="hint">In closed form, without gradients: the model learns to say
    without this message what it says with it. Of the data only the prompts are needed.</p><textarea class="prompt" rows="3" aria-label="System message" value=${system} onInput=${(e) => set(e.target.value)}></textarea>
    <p><button disabled=${!system.trim() || !data || !model.value} onClick=${start}>Solve</button></p></details><//>`;
}

function Estimate({ facts }) {
  if (!facts) return html`<${Wait} what="Estimating" />`;
  if (facts.problem) return html`<${Problem} text=${facts.problem} />`;
  const tight = facts.bytes > facts.free;
  return html`<dl class="facts"><${Fact} name="Memory" warn=${tight}>${bytes(facts.bytes)} <small>of ${bytes(facts.free)} free</small><//>
    <${Fact} name="Time, about">${duration(facts.seconds)}<//><${Fact} name="Steps">${count(facts.steps)}<//>
    <${Fact} name="Trains">${parameters(facts.parameters)} <small>on ${facts.engine}</small><//></dl>
    ${facts.notes.map((note) => html`<p class="hint">${note}</p>`)}`;
}

const clean = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null && value !== undefined));
function promptOf(text) {
  try {
    const row = JSON.parse(text), messages = row.messages || row.conversations;
    const found = messages ? (messages.find((m) => (m.role || m.from) === 'user' || m.from === 'human') || {}) : {};
    return String(found.content || found.value || row.prompt || row.instruction || row.question || '').slice(0, 300);
  } catch { return ''; }
}
