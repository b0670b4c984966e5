// The markdown of answers as elements: nothing of a model's text is ever HTML, so there is nothing to sanitise.
import { html } from './lib.js';

const INLINE = /(`[^`\n]+`)|(\*\*[^*\n]+\*\*)|(\*[^*\s][^*\n]*\*)|(\[[^\]\n]+\]\([^)\s]+\))/g;
function inline(text) {
  const found = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    found.push(text.slice(at, match.index));
    const [all, code, strong, soft] = match;
    if (code) found.push(html`<code>${code.slice(1, -1)}</code>`);
    else if (strong) found.push(html`<strong>${strong.slice(2, -2)}</strong>`);
    else if (soft) found.push(html`<em>${soft.slice(1, -1)}</em>`);
    else {
      const [, words, to] = /^\[([^\]]+)\]\(([^)]+)\)$/.exec(all);
      found.push(/^https?:\/\//.test(to) ? html`<a href=${to} target="_blank" rel="noopener noreferrer nofollow">${words}</a>` : all);
    }
    at = match.index + all.length;
  }
  found.push(text.slice(at));
  return found;
}

export function Markdown({ text }) {
  const blocks = [], lines = text.split('\n');
  for (let i = 0; i < lines.length;) {
    const line = lines[i];
    if (/^\s*```/.test(line)) {
      const start = ++i;
      while (i < lines.length && !/^\s*```/.test(lines[i])) i++;
      blocks.push(html`<pre><code>${lines.slice(start, i++).join('\n')}</code></pre>`);
    } else if (/^#{1,6}\s/.test(line)) {
      blocks.push(html`<p class="heading">${inline(line.replace(/^#+\s/, ''))}</p>`);
      i++;
    } else if (/^\s*([-*+]|\d+[.)])\s/.test(line)) {
      const start = i, ordered = /^\s*\d/.test(line);
      while (i < lines.length && /^\s*([-*+]|\d+[.)])\s/.test(lines[i])) i++;
      const items = lines.slice(start, i).map((one) => html`<li>${inline(one.replace(/^\s*([-*+]|\d+[.)])\s/, ''))}</li>`);
      blocks.push(ordered ? html`<ol>${items}</ol>` : html`<ul>${items}</ul>`);
    } else if (!line.trim()) {
      i++;
    } else {
      const start = i;
      while (i < lines.length && lines[i].trim() && !/^(\s*```|#{1,6}\s|\s*([-*+]|\d+[.)])\s)/.test(lines[i])) i++;
      if (i === start) i++;
      blocks.push(html`<p>${inline(lines.slice(start, i).join('\n'))}</p>`);
    }
  }
  return html`<div class="markdown">${blocks}</div>`;
}
