// Above the text, always in view: the actions.
import { useState, useSyncExternalStore } from 'react';

function Copy({ id, label, done, text }) {
  const [shown, setShown] = useState(label);
  const click = () => navigator.clipboard.writeText(text()).then(() => (setShown(done), setTimeout(() => setShown(label), 2000)));
  return <button id={id} type="button" aria-live="polite" onClick={click}>{shown}</button>;
}

function Toolbar() {
  const { running, sheet, editing, problem, offline, interrupted, chosen } = useSyncExternalStore(page.subscribe, page.get);
  const shown = page.document();
  if (!shown) return null;
  const busy = running !== null || offline;
  const stops = running !== null || interrupted !== null;
  // Not `disabled`, which would take the focus away.
  const action = (id, label, title, act, off = busy || editing !== null) => <button id={id} type="button" title={title} aria-disabled={off} onClick={() => off || act()}>{label}</button>;
  const write = () => (editing === null ? page.goOn() : page.rewrite(document.getElementById('edited')));
  const onClick = (event) => (stops ? event.detail < 2 && page.stop() : busy || write()); // a double click does not stop
  return <div className="toolbar column">
    <h1 className="sr-only">{page.nameOf(shown)}</h1>
    <div role="group" aria-label="Actions" className="chips">
      <button id={stops ? 'stop' : 'continue'} type="button" className="primary" aria-disabled={busy && !stops} title={stops ? 'Stop writing' : 'Continue from the end of the text, or from the cursor'} onClick={onClick}>
        {stops ? 'Stop' : editing === null ? 'Continue' : 'Continue from here'}
      </button>
      {action('again', 'Try again', 'Write the last part again, with another seed', page.again)}
      {action('edit', editing === null ? 'Edit' : 'Cancel', 'Edit the text yourself, or cancel your edit', () => (editing === null ? page.edit(chosen) : page.set({ editing: null })), busy)}
      {action('undo', 'Undo', 'Undo the last change (Ctrl+Z)', page.undo, busy || editing !== null || page.undoable() < 0)}
      {action('new', 'New text', 'Begin another text; this one stays in the list', page.begin, running !== null || editing !== null)}
      <button id="share" type="button" popovertarget="sharing" title="Copy, download or link to this text">Share <span aria-hidden="true">▾</span></button>
      <div id="sharing" popover="auto">
        {navigator.clipboard && <Copy id="copy" label="Copy" done="Copied" text={page.text} />} {/* not over plain HTTP from another machine */}
        {navigator.clipboard && <Copy id="link" label="Copy link" done="Link copied" text={page.link} />}
        <a id="save" download="text.txt" href={`data:text/plain;charset=utf-8,${encodeURIComponent(page.text().toWellFormed())}`}>Download</a>
      </div>
      <button id="look-inside" type="button" title="Show the panel" aria-pressed={sheet} onClick={() => page.set({ sheet: !sheet })}>Look inside</button>
    </div>
    {problem && <p role="alert" className="problem">{problem}</p>}
  </div>;
}

export default page.component('Toolbar', Toolbar);
