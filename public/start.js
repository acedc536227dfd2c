// Chainlit's page is dark at first; this one is as the person's system is.
if (!localStorage.getItem('vite-ui-theme')) localStorage.setItem('vite-ui-theme', 'system');
