// Keeps the page's parts, so that it opens without the studio and says so. Nothing of the API is ever kept.
const NAME = 'anytune-$VERSION', PARTS = ["/", ..."$PARTS"];

self.addEventListener('install', (event) => event.waitUntil(
  caches.open(NAME).then((cache) => cache.addAll(PARTS)).then(() => self.skipWaiting())));
self.addEventListener('activate', (event) => event.waitUntil(
  caches.keys().then((names) => Promise.all(names.filter((name) => name !== NAME).map((name) => caches.delete(name)))).then(() => self.clients.claim())));
self.addEventListener('fetch', (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== 'GET' || url.origin !== location.origin || url.pathname.startsWith('/api') || url.searchParams.has('token') || url.pathname === '/docs') return;
  const key = event.request.mode === 'navigate' ? '/' : event.request;
  // the network first: the page is as new as the studio that serves it
  event.respondWith(fetch(event.request).then((answer) => {
    if (answer.ok && event.request.mode !== 'navigate') {
      const copy = answer.clone();
      caches.open(NAME).then((cache) => cache.put(event.request, copy)).catch(() => null);
    }
    return answer.ok || event.request.mode !== 'navigate' ? answer : caches.match(key).then((kept) => kept || answer);
  }, () => caches.match(key).then((kept) => kept || new Response('The studio does not respond, and this page is not cached.', { status: 503, headers: { 'Content-Type': 'text/plain' } }))));
});
