// A link that holds a prompt and settings, and a text as a file.
import { readSettings } from './settings.js';

export function linkTo(address, prompt, settings) {
  const url = new URL(address);
  url.hash = new URLSearchParams({ prompt, ...settings }).toString();
  return url.href;
}

// What a link holds: { prompt, settings }, or undefined if it holds no prompt.
export function readLink(address) {
  const fields = Object.fromEntries(new URLSearchParams(new URL(address).hash.slice(1)));
  if (!fields.prompt) return undefined;
  return { prompt: fields.prompt.slice(-50_000), settings: readSettings(fields) };
}

export function saveAs(name, text) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type: 'text/plain;charset=utf-8' }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}
