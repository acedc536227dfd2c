// The panel at the right or, on a narrow screen, a sheet at the bottom. Each tab is a component of its own.
import { useSyncExternalStore } from 'react';

// `asks`: why a person should click a word, in a tab that is about one.
const TABS = {
  word: { label: 'This word', component: 'Word', asks: 'to see what else it could have been' },
  next: { label: 'What comes next', component: 'Word' },
  guess: { label: 'Guess', component: 'Guess' },
  attention: { label: 'Attention', component: 'Attention', asks: 'to see which earlier words the model looks at' },
  layers: { label: 'Layers', component: 'Layers', asks: 'to see how the model arrived at it' },
  compare: { label: 'Compare', component: 'Compare' },
  story: { label: 'The story', component: 'Story' }
};
const NAMES = Object.keys(TABS);

function Panel() {
  const { tab: asked, sheet } = useSyncExternalStore(page.subscribe, page.get);
  const tab = NAMES.includes(asked) ? asked : 'word'; // a link can hold anything
  const shown = page.document();
  if (!shown) return null;
  const onKeyDown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const to = NAMES[(NAMES.indexOf(tab) + step + NAMES.length) % NAMES.length];
    page.openTab(to);
    document.getElementById(`tab-${to}`).focus();
  };
  const { component, asks } = TABS[tab];
  const Tab = page.components[component];
  const hasToken = page.looked() in page.tokensOf(shown);
  return <section id="panel" aria-label="Inside the model" data-open={sheet}>
    <div className="tabs">
      <div role="tablist" className="chips" aria-label="What to look at" onKeyDown={onKeyDown}>
        {NAMES.map((name) => <button key={name} id={`tab-${name}`} type="button" role="tab" aria-selected={name === tab} aria-controls="tab-panel" tabIndex={name === tab ? 0 : -1} onClick={() => page.openTab(name)}>
          {TABS[name].label}
        </button>)}
      </div>
      <button type="button" id="close-sheet" onClick={page.close}>Close</button>
    </div>
    <div role="tabpanel" id="tab-panel" className="column" aria-labelledby={`tab-${tab}`} tabIndex={0}>
      {asks && !hasToken ? <p>Click or tap a word in the text {asks}.</p> : Tab && <Tab key={tab} />}
    </div>
  </section>;
}

export default page.component('Panel', Panel);
