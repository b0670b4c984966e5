// Charts: uPlot, with wheel and buttons to zoom, drag to move, and one range for all charts that share it.
import uPlot from './vendor/uplot.mjs';
import { html, useEffect, useRef } from './lib.js';
import { number } from './format.js';

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const COLOURS = ['--line-1', '--line-2', '--line-3', '--line-4', '--line-5', '--line-6'];

function options(lines, width, log, moved) {
  const axis = { stroke: css('--soft'), grid: { stroke: css('--edge'), width: 1 }, ticks: { stroke: css('--edge'), width: 1 }, font: '11px system-ui' };
  return {
    width, height: width < 480 ? 190 : 230, padding: [10, 12, 0, 0],
    legend: { live: true }, cursor: { drag: { setScale: false, x: false, y: false }, points: { size: 6 }, sync: { key: 'runs' } },
    scales: { x: { time: false, range: (_, low, high) => high > low ? [low, high] : [(low ?? 1) - 1, (high ?? 1) + 1] }, y: log ? { distr: 3 } : {} },
    axes: [{ ...axis, size: 30, values: (_, values) => values.map((v) => v >= 1000 ? v / 1000 + 'k' : v) },
      { ...axis, size: 62, values: (_, values) => values.map((v) => v === null ? '' : v && Math.abs(v) < 1e-3 ? Number(v.toPrecision(2)).toExponential() : number(v, 3)) }],
    series: [{ label: 'step', value: (_, v) => v === null ? '–' : String(Math.round(v)) }, ...lines.map((line) => ({
      label: line.label, stroke: css(line.colour), width: 1.5, spanGaps: true, points: { show: line.dots ?? false, size: 5, fill: css(line.colour) },
      value: (_, v) => number(v), dash: line.dash }))],
    plugins: [moving(moved)],
  };
}

// Drag moves, the wheel zooms around the pointer, two fingers do both, a double click shows everything.
function moving(moved) {
  let wanted = null, frame = 0;
  const show = (u, min, max) => {
    wanted = [min, max];
    frame ||= requestAnimationFrame(() => { frame = 0; moved(wanted); });
  };
  return { hooks: { ready: (u) => {
    const over = u.over, points = new Map();
    over.style.touchAction = 'pan-y';
    over.addEventListener('wheel', (e) => {
      if (!e.ctrlKey && !e.shiftKey && Math.abs(e.deltaY) < Math.abs(e.deltaX)) return;
      e.preventDefault();
      const { min, max } = u.scales.x, at = u.posToVal(e.offsetX, 'x'), by = e.deltaY < 0 ? 0.8 : 1.25;
      show(u, at - (at - min) * by, at + (max - at) * by);
    }, { passive: false });
    over.addEventListener('pointerdown', (e) => { if (e.button) return; points.set(e.pointerId, e.clientX); over.setPointerCapture(e.pointerId); });
    over.addEventListener('pointermove', (e) => {
      if (!points.has(e.pointerId)) return;
      const { min, max } = wanted && frame ? { min: wanted[0], max: wanted[1] } : u.scales.x, perPixel = (max - min) / over.clientWidth, before = [...points.values()];
      points.set(e.pointerId, e.clientX);
      const after = [...points.values()];
      if (after.length === 1) return show(u, min - (after[0] - before[0]) * perPixel, max - (after[0] - before[0]) * perPixel);
      const grown = Math.max(1, Math.abs(after[0] - after[1])) / Math.max(1, Math.abs(before[0] - before[1]));
      const left = over.getBoundingClientRect().left, at = min + ((after[0] + after[1]) / 2 - left) * perPixel;
      show(u, at - (at - min) / grown, at + (max - at) / grown);
    });
    const up = (e) => points.delete(e.pointerId);
    over.addEventListener('pointerup', up);
    over.addEventListener('pointercancel', up);
    over.addEventListener('dblclick', () => moved(null));
  } } };
}

// lines: [{label, colour, dots, dash}]; data: [steps, ...values]; range: signal of [first, last] or null for all.
export function Chart({ title, lines, data, range, log, note }) {
  const box = useRef(), plot = useRef();
  const key = JSON.stringify(lines) + log;
  useEffect(() => {
    const moved = (to) => { range.value = to && to[1] - to[0] > 1 ? to : null; };
    const make = () => {
      if (plot.current) plot.current.destroy();
      plot.current = new uPlot(options(lines, box.current.clientWidth, log, moved), box.latest, box.current);
    };
    box.latest = data;
    make();
    if (range.value) plot.current.setScale('x', { min: range.value[0], max: range.value[1] });
    const size = new ResizeObserver(() => { const width = box.current && box.current.clientWidth; if (width && plot.current && plot.current.width !== width) plot.current.setSize({ width, height: plot.current.height }); });
    size.observe(box.current);
    const scheme = new MutationObserver(make);
    scheme.observe(document.documentElement, { attributeFilter: ['data-theme'] });
    return () => { size.disconnect(); scheme.disconnect(); plot.current.destroy(); plot.current = null; };
  }, [key]);
  useEffect(() => {
    box.latest = data;
    plot.current.setData(data, !range.value);
    if (range.value) plot.current.setScale('x', { min: range.value[0], max: range.value[1] });
  }, [data]);
  useEffect(() => range.subscribe((to) => {
    const steps = box.latest && box.latest[0], p = plot.current;
    if (p && steps && steps.length) p.setScale('x', to ? { min: to[0], max: to[1] } : { min: steps[0], max: steps[steps.length - 1] });
  }), [key]);
  return html`<figure class="chart"><figcaption>${title}${note && html` <span class="hint">${note}</span>`}</figcaption><div ref=${box}></div></figure>`;
}
export const Zoom = ({ range, first, last }) => {
  const by = (factor) => () => {
    const [low, high] = range.value || [first, last], middle = (low + high) / 2, half = (high - low) / 2 * factor;
    range.value = half * 2 >= last - first ? null : [middle - half, middle + half];
  };
  const move = (share) => () => { const [low, high] = range.value || [first, last], by_ = (high - low) * share; range.value = [low + by_, high + by_]; };
  return html`<div class="row" role="group" aria-label="Part of the run that is shown"><button aria-label="Earlier" onClick=${move(-0.5)}>←</button><button aria-label="Closer" onClick=${by(0.5)}>+</button>
    <button aria-label="Wider" onClick=${by(2)}>−</button><button aria-label="Later" onClick=${move(0.5)}>→</button><button onClick=${() => { range.value = null; }}>All</button></div>`;
};
