// Search as you type: a form marked `data-filter` replaces the element with that id.
for (const form of document.querySelectorAll("[data-filter]")) {
  let turn = 0
  form.oninput = async () => {
    const mine = ++turn
    await new Promise(done => setTimeout(done, 250))
    const address = `${form.action}?${new URLSearchParams(new FormData(form))}`
    const answer = mine === turn && (await fetch(address))
    const text = answer && (await answer.text())
    const page = new DOMParser().parseFromString(text, "text/html").getElementById(form.dataset.filter)
    if (mine !== turn || !page) return
    document.getElementById(page.id).replaceWith(page)
    history.replaceState(0, 0, address)
  }
}
