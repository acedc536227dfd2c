// Above the text: how to look at it, and what can be done with it.
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
  const bars = () => page.set({ bars: page.tokensOf(shown).length, open: false });
  return (
    <div className="toolbar">
      <div role="group" aria-label="How to look at the text" className="views">
        {views.map(([name, label]) => (
          <button
            key={name}
            type="button"
            id={`view-${name}`}
            aria-pressed={state.view === name}
            onClick={() => page.set({ view: name })}
          >
            {label}
          </button>
        ))}
      </div>
      <div role="group" aria-label="What to do with the text" className="doings">
        <button id="continue" type="button" disabled={busy} onClick={page.goOn}>Continue</button>
        <button id="again" type="button" disabled={busy} onClick={page.again}>Again</button>
        <button id="next-token" type="button" onClick={bars}>Next token</button>
        <button id="compare-button" type="button" disabled={busy} onClick={page.compare}>Compare</button>
        <button id="story" type="button" onClick={() => page.openStory()}>Story</button>
        {navigator.clipboard && ( // browsers have none where the page comes over plain HTTP from elsewhere
          <>
            <Done id="copy" label="Copy" done="Copied" act={() => navigator.clipboard.writeText(page.text())} />
            <Done id="link" label="Link" done="Link copied" act={() => navigator.clipboard.writeText(page.link())} />
          </>
        )}
        <button id="save" type="button" onClick={page.save}>Save</button>
        <button id="new" type="button" disabled={busy} onClick={page.begin}>New</button>
      </div>
    </div>
  );
}

export default page.component('Toolbar', Toolbar);
