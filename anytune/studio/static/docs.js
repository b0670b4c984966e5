// The HTTP API, as /api/openapi.json describes it.
import { html, render, useEffect, useState } from './lib.js';
import { get } from './api.js';

function name(schema, all) {
  if (!schema) return '';
  if (schema.$ref) return schema.$ref.split('/').pop();
  if (schema.anyOf) return schema.anyOf.map((one) => name(one, all)).join(' | ');
  if (schema.type === 'array') return `${name(schema.items, all)}[]`;
  return schema.enum ? schema.enum.map((one) => JSON.stringify(one)).join(' | ') : schema.const ? JSON.stringify(schema.const) : schema.type || 'any';
}
const Schema = ({ schema, all }) => {
  const real = schema && schema.$ref ? all[schema.$ref.split('/').pop()] : schema;
  return real && real.properties ? html`<table><tbody>${Object.entries(real.properties).map(([key, value]) => html`<tr><th scope="row"><code>${key}</code>${(real.required || []).includes(key) ? ' *' : ''}</th><td><code>${name(value, all)}</code></td><td>${value.description || ''}</td></tr>`)}</tbody></table>` : html`<code>${name(schema, all)}</code>`;
};
function Docs() {
  const [api, set] = useState(null), [problem, fail] = useState('');
  useEffect(() => { get('openapi.json').then(set, (error) => fail(error.message)); }, []);
  if (!api) return html`<main id="main"><h1>HTTP API</h1><p>${problem || 'Loading…'}</p></main>`;
  const all = (api.components || {}).schemas || {}, groups = {};
  for (const [path, methods] of Object.entries(api.paths)) for (const [method, one] of Object.entries(methods)) (groups[(one.tags || ['other'])[0]] ||= []).push([method, path, one]);
  return html`<main id="main"><h1>HTTP API</h1><p class="lead">${api.info.description} The description as JSON: <a href="/api/openapi.json">/api/openapi.json</a></p>
    ${Object.entries(groups).map(([group, rows]) => html`<section class="card"><h2>${group}</h2>${rows.map(([method, path, one]) => html`<details><summary><code>${method.toUpperCase()} ${path}</code> <span class="hint">${(one.description || one.summary || '').split('\n')[0]}</span></summary>
      <p>${one.description}</p>${(one.parameters || []).length > 0 && html`<table><tbody>${one.parameters.map((p) => html`<tr><th scope="row"><code>${p.name}</code>${p.required ? ' *' : ''}</th><td>${p.in}</td><td><code>${name(p.schema, all)}</code></td></tr>`)}</tbody></table>`}
      ${one.requestBody && html`<${Schema} schema=${Object.values(one.requestBody.content)[0].schema} all=${all} />`}</details>`)}</section>`)}</main>`;
}
render(html`<${Docs} />`, document.getElementById('app'));
