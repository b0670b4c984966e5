// What every file of the page takes from the libraries.
import { h, render } from './vendor/preact.mjs';
import htm from './vendor/htm.mjs';
export { useEffect, useMemo, useRef, useState, useCallback } from './vendor/hooks.mjs';
export { signal, computed, effect, batch } from './vendor/signals.mjs';

export const html = htm.bind(h);
export { h, render };
