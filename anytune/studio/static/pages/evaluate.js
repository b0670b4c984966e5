// Evaluate: the reports of the command line, from the page.
import { html, useState } from '../lib.js';
import { get, post } from '../api.js';
import { go } from '../router.js';
import { jobs, model } from '../store.js';
import { ago } from '../format.js';
import { Card, Choice, Field, ModelPicker, Num, Page, Problem, State, busy, useLoad } from '../ui.js';

const REPORTS = [['compare', 'Answers', 'Base and adapters answer the same prompts; measured against the answers in the data.'],
  ['style', 'Style', "How close answers come to an author's held-out messages."], ['perplexity', 'Perplexity', 'How well a text is predicted.']];

export function Evaluate() {
  const [data, problem] = useLoad(() => get('data'), []), [adapters] = useLoad(() => get('adapters'), []);
  const [report, setReport] = useState('compare'), [chosen, choose] = useState([]), [set, setData] = useState(''), [limit, setLimit] = useState(20), [tokens, setTokens] = useState(128);
  const done = (jobs.value || []).filter((job) => job.kind === 'evaluate');
  const begin = busy(async () => { const made = await post('evaluate', { report, model: model.value, adapters: chosen, data: set || data[0].id, limit, max_tokens: tokens }); go('/runs/' + made.id); });
  return html`<${Page} title="Evaluate" lead="What an adapter changed, measured."><${Problem} text=${problem} />
    <${Card}><${Choice} label="Report" value=${report} set=${setReport} options=${REPORTS.map(([key, label]) => [key, label])} /><p class="hint">${REPORTS.find(([key]) => key === report)[2]}</p>
      <div class="grid"><${ModelPicker} /><${Field} label="Data that was not trained on"><select value=${set || (data && data[0] && data[0].id) || ''} onChange=${(e) => setData(e.target.value)}>${(data || []).map((one) => html`<option value=${one.id}>${one.name}</option>`)}</select><//>
      ${report !== 'perplexity' && html`<${Num} label="Maximum prompts" value=${limit} set=${setLimit} step="1" min="1" /><${Num} label="Tokens per answer" value=${tokens} set=${setTokens} step="1" min="1" />`}</div>
      <fieldset class="choice"><legend class="label">Adapters</legend><div class="picks">${(adapters || []).map((one) => html`<label class=${'pick' + (chosen.includes(one.id) ? ' on' : '')}><input type="checkbox" checked=${chosen.includes(one.id)}
        onChange=${() => choose(chosen.includes(one.id) ? chosen.filter((id) => id !== one.id) : [...chosen, one.id])} />${one.name}</label>`)}${adapters && !adapters.length && html`<span class="hint">None yet.</span>`}</div></fieldset>
      <button class="primary" disabled=${!data || !data.length || !model.value || (report !== 'perplexity' && !chosen.length)} onClick=${begin}>Measure</button><//>
    ${done.length > 0 && html`<${Card} title="Reports"><ul class="list">${done.map((job) => html`<li><a class="item" href=${'/runs/' + job.id}><span class="row"><b>${job.name}</b> <${State} state=${job.state} /></span><span>${ago(job.created)}</span></a></li>`)}</ul><//>`}<//>`;
}
