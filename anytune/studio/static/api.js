// The HTTP API as functions. Errors are Error objects with the server's sentence.
import { signal } from './lib.js';

export const offline = signal(false);
export const locked = signal(false);    // the server wants a token

export async function call(method, path, body) {
  let answer;
  try {
    answer = await fetch('/api/' + path, {
      method,
      headers: body === undefined ? {} : { 'Content-Type': 'application/json' },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    offline.value = false;
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    offline.value = true;
    throw new Error('The studio does not respond: is it still running?');
  }
  if (answer.status === 401) locked.value = true;
  if (answer.status === 204) return null;
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(found.error || 'The studio answered ' + answer.status), { status: answer.status });
  return found;
}
export const get = (path) => call('GET', path);
export const post = (path, body = {}) => call('POST', path, body);
export const patch = (path, body) => call('PATCH', path, body);
export const put = (path, body) => call('PUT', path, body);
export const del = (path) => call('DELETE', path);
export const query = (values) => new URLSearchParams(
  Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== '')).toString();

// Server-sent events of a POST, which EventSource cannot do.
export async function stream(path, body, take, abort) {
  const answer = await fetch('/api/' + path, {
    method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body), signal: abort });
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || 'The studio answered ' + answer.status);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split('\n\n');
    held = parts.pop();
    for (const part of parts) {
      const event = /^event: (.*)$/m.exec(part), data = /^data: (.*)$/m.exec(part);
      if (event && data) take(event[1], JSON.parse(data[1]));
    }
  }
}

// A file in pieces; what broke off goes on where the server has it. tell(done, total).
const PIECE = 8 << 20;
export async function upload(file, finish, tell, abort) {
  const begun = await post('uploads', { name: file.name, size: file.size });
  let at = 0, failed = 0;
  while (at < file.size) {
    if (abort && abort.aborted) { await del('uploads/' + begun.id).catch(() => null); throw new Error('The upload was interrupted.'); }
    try {
      const answer = await fetch(`/api/uploads/${begun.id}?offset=${at}`, {
        method: 'PUT', headers: { 'Content-Type': 'application/octet-stream' }, body: file.slice(at, at + PIECE), signal: abort });
      const found = await answer.json();
      if (!answer.ok && answer.status !== 409) throw Object.assign(new Error(found.error), { fatal: true });
      at = answer.ok ? found.received : (await get('uploads/' + begun.id)).received;
      failed = 0;
      tell(at, file.size);
    } catch (error) {
      if (error.fatal || ++failed > 20) throw error;
      await new Promise((go) => setTimeout(go, Math.min(500 * failed, 5000)));
      at = await get('uploads/' + begun.id).then((found) => found.received, () => at);
    }
  }
  return post(`uploads/${begun.id}/finish`, finish);
}
