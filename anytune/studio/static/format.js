// Numbers and times as people read them.
export const number = (value, digits = 4) => value === null || value === undefined ? '–'
  : Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) : Number(value.toPrecision(digits)).toLocaleString('en');
export const count = (value) => Number(value || 0).toLocaleString('en');
export const percent = (part, whole) => whole ? `${(100 * part / whole).toFixed(part / whole < 0.1 ? 1 : 0)} %` : '–';
export function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let n = value || 0, unit = 0;
  while (n >= 1024 && unit < 4) { n /= 1024; unit++; }
  return `${unit ? n.toFixed(n < 10 ? 1 : 0) : n} ${units[unit]}`;
}
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
}
export function ago(time) {
  const s = Date.now() / 1000 - time;
  if (s < 90) return 'just now';
  if (s < 5400) return `${Math.round(s / 60)} min ago`;
  if (s < 86400) return `${Math.round(s / 3600)} h ago`;
  return new Date(time * 1000).toLocaleDateString('en', { day: 'numeric', month: 'short', year: 'numeric' });
}
export const parameters = (n) => n >= 1e9 ? (n / 1e9).toFixed(1) + ' B' : n >= 1e6 ? (n / 1e6).toFixed(1) + ' M' : n >= 1e3 ? (n / 1e3).toFixed(0) + ' k' : String(n || '–');
export const short = (name) => { const last = (name || '').split('/').pop(); return last.endsWith('.gguf') ? last.split(':').pop().replace(/\.gguf$/, '') : last.replace(/^ollama:/, ''); };
