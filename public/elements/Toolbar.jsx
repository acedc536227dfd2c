// Above the text: the views, and the actions.
import { useState, useSyncExternalStore } from 'react';

const VIEWS = {
  plain: 'Plain',
  probs: 'Probabilities',
  copied: 'Copied from the story',
  drafts: 'From drafts',
  attention: 'Attention'
};

function Done({ id, label, done, act }) {
  const [shown, setShown] = useState(label);
  const click = () => Promise.resolve(act()).then(() => (setShown(done), setTimeout(() => setShown(label), 2000)));
  return <button id={id} type="button" aria-live="polite" onClick={click}>{shown}</button>;
}

function Toolbar() {
  const state = useSyncExternalStore(page.subscribe, page.get);
  const shown = page.document();
  if (!shown) return null;
  const busy = state.running !== null;
  const hasDrafts = page.tokensOf(shown).some((token) => token.draft);
  const views = Object.entries(VIEWS).filter(([name]) => name !== 'drafts' || hasDrafts);
  return (
    <div className="toolbar">
      <div role="group" aria-label="Views" className="views">
        {views.map(([name, label]) => (
          <button key={name} type="button" id={`view-${name}`} aria-pressed={state.view === name} onClick={() => page.set({ view: name })}>{label}</button>
        ))}
      </div>
      <div role="group" aria-label="Actions" className="doings">
        <button id="continue" type="button" disabled={busy} onClick={page.goOn}>Continue</button>
        <button id="again" type="button" disabled={busy} onClick={page.again}>Try again</button>
        <button id="next-token" type="button" onClick={() => page.set({ bars: page.tokensOf(shown).length, open: false })}>What comes next?</button>
        <button id="compare-button" type="button" disabled={busy} onClick={page.compare}>Compare</button>
        <button id="story" type="button" onClick={() => page.openStory()}>Read the story</button>
        {navigator.clipboard && ( // not available over plain HTTP from another machine
          <>
            <Done id="copy" label="Copy" done="Copied" act={() => navigator.clipboard.writeText(page.text())} />
            <Done id="link" label="Copy link" done="Link copied" act={() => navigator.clipboard.writeText(page.link())} />
          </>
        )}
        <button id="save" type="button" onClick={page.save}>Download</button>
        <button id="new" type="button" disabled={busy} onClick={page.begin}>New text</button>
      </div>
    </div>
  );
}

export default page.component('Toolbar', Toolbar);
