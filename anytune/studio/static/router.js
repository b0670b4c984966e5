// The address is the state: every page can be linked to, and Back goes back.
import { signal } from './lib.js';

const here = () => ({ path: location.pathname, query: Object.fromEntries(new URLSearchParams(location.search)) });
export const route = signal(here());

export function go(to, replace = false) {
  history[replace ? 'replaceState' : 'pushState']({}, '', to);
  route.value = here();
  if (!replace) window.scrollTo(0, 0);
}
export function setQuery(values) {
  const all = { ...route.value.query, ...values };
  const text = new URLSearchParams(Object.entries(all).filter(([, value]) => value !== undefined && value !== '' && value !== null)).toString();
  go(location.pathname + (text ? '?' + text : ''), true);
}
addEventListener('popstate', () => { route.value = here(); });
document.addEventListener('click', (event) => {
  const link = event.target.closest && event.target.closest('a[href^="/"]');
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey
      || link.target || link.hasAttribute('download')) return;
  event.preventDefault();
  go(link.getAttribute('href'));
});
