// The shell: which page, the navigation around it, the token, the theme.
import { html, render, signal, useEffect, useState } from './lib.js';
import { get, locked, offline } from './api.js';
import { route } from './router.js';
import { jobs, listen, loadJobs, remember, remembered } from './store.js';
import { Empty, Page, Toasts, Wait } from './ui.js';

const PAGES = [['data', 'Data'], ['train', 'Train'], ['runs', 'Runs'], ['adapters', 'Adapters'], ['compare', 'Compare'], ['evaluate', 'Evaluate'], ['models', 'Models']];
const ICONS = {
  data: 'M4 6c0-1.7 3.6-3 8-3s8 1.3 8 3-3.6 3-8 3-8-1.3-8-3Zm0 0v12c0 1.7 3.6 3 8 3s8-1.3 8-3V6M4 12c0 1.7 3.6 3 8 3s8-1.3 8-3', train: 'M12 3v4m0 10v4M3 12h4m10 0h4M12 8.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7Z',
  runs: 'M3 20h18M4 16l5-6 4 3 7-9', adapters: 'M12 3 3 8l9 5 9-5-9-5ZM3 13l9 5 9-5', compare: 'M4 4h7v16H4zM13 4h7v16h-7z', evaluate: 'M5 21V10m7 11V3m7 18v-7',
  models: 'M12 3l8 4.5v9L12 21l-8-4.5v-9L12 3Zm0 9 8-4.5M12 12v9m0-9L4 7.5',
};
const LOAD = {
  data: () => import('./pages/data.js'), train: () => import('./pages/train.js'), runs: () => import('./pages/runs.js'), run: () => import('./pages/run.js'),
  adapters: () => import('./pages/adapters.js'), compare: () => import('./pages/compare.js'), evaluate: () => import('./pages/evaluate.js'), models: () => import('./pages/models.js'),
};
const parts = signal({});       // page -> its module, once it has come
const want = (name) => LOAD[name]().then((module) => { parts.value = { ...parts.value, [name]: module }; }, () => { offline.value = true; });

function Content() {
  const [, first = '', second] = route.value.path.split('/');
  const name = first === '' ? 'data' : first === 'runs' && second ? 'run' : first;
  const module = parts.value[name];
  useEffect(() => { if (LOAD[name] && !parts.value[name]) want(name); }, [name]);
  if (!LOAD[name]) return html`<${Page} title="Not found"><${Empty}>There is no such page. <a href="/">Go to data</a><//><//>`;
  if (!module) return html`<main id="main"><${Wait} /></main>`;
  if (name === 'data') return second ? html`<${module.DataPage} key=${second} id=${second} />` : html`<${module.DataList} />`;
  if (name === 'run') return html`<${module.Run} key=${second} id=${second} />`;
  if (name === 'adapters') return second ? html`<${module.AdapterPage} key=${second} id=${second} />` : html`<${module.Adapters} />`;
  return html`<${module[{ train: 'Train', runs: 'Runs', compare: 'Compare', evaluate: 'Evaluate', models: 'Models' }[name]]} key=${route.value.query.from || ''} />`;
}

const theme = signal(remembered('theme', ''));
function setTheme(value) {
  theme.value = value;
  remember('theme', value);
  if (value) document.documentElement.dataset.theme = value; else delete document.documentElement.dataset.theme;
}
if (theme.value) document.documentElement.dataset.theme = theme.value;
const dark = () => theme.value ? theme.value === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;

function Nav() {
  const here = route.value.path.split('/')[1] || 'data', running = (jobs.value || []).filter((one) => one.state === 'running').length;
  return html`<nav class="nav" aria-label="Pages"><a class="brand" href="/" aria-label="anytune studio">any<b>tune</b></a>
    ${PAGES.map(([key, label]) => html`<a href=${'/' + key} class=${here === key ? 'on' : ''} aria-current=${here === key ? 'page' : undefined}><svg viewBox="0 0 24 24" aria-hidden="true"><path d=${ICONS[key]} /></svg><span>${label}</span>
      ${key === 'runs' && running > 0 && html`<i class="count" aria-label=${running + ' running'}>${running}</i>`}</a>`)}
    <div class="foot"><button class="quiet" onClick=${() => setTheme(dark() ? 'light' : 'dark')}>${dark() ? 'Light' : 'Dark'}</button><a href="/docs" target="_blank" rel="noopener">API</a></div></nav>`;
}

function Token() {
  const [token, set] = useState('');
  return html`<main id="main" class="token-page"><h1>any<b>tune</b></h1><p>Enter the token shown in the terminal where the studio was started. The QR code there contains it too.</p>
    <form onSubmit=${(e) => { e.preventDefault(); location.href = '/?token=' + encodeURIComponent(token.trim()); }}><input type="password" autocomplete="current-password" aria-label="Token" value=${token} onInput=${(e) => set(e.target.value)} />
    <button class="primary" disabled=${!token.trim()}>Open</button></form></main>`;
}

function App() {
  useEffect(() => {
    loadJobs().then(listen, () => null);
    const again = setInterval(() => { if (offline.value) get('health').then(() => { listen(); loadJobs(); }, () => null); }, 2000);
    return () => clearInterval(again);
  }, []);
  if (locked.value) return html`<${Token} />`;
  return html`<a class="skip" href="#main">To the page</a><${Nav} />
    ${offline.value && html`<div class="offline" role="status">The studio does not answer. Runs go on without it; this page waits for it.</div>`}
    <${Content} /><${Toasts} />`;
}

render(html`<${App} />`, document.getElementById('app'));
// once the page is there: what it keeps for later must not hold up what is needed now
if ('serviceWorker' in navigator && isSecureContext) setTimeout(() => navigator.serviceWorker.register('/sw.js').catch(() => null), 1500);
