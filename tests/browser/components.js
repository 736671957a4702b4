// What test_components.py does in the page.
({
  // Replaces words by bars, and everything else whose size depends on a font.
  async withoutFonts() {
    const style = new CSSStyleSheet()
    style.replaceSync(`
      /* Any font will do: what the layout takes from it is overridden. */
      @font-face {
        font-family: metrics;
        src: local("DejaVu Sans"), local("Liberation Sans"), local("Arial"), local("Noto Sans");
        ascent-override: 90%; descent-override: 25%; line-gap-override: 0%;
      }
      * { font-family: metrics, sans-serif !important; animation: none !important; }
      ::before, ::after { font-size: 0 !important; }
      .word { display: inline-block; height: .7em; margin: .4em .3em 0 0; vertical-align: top; background: currentColor; }
      .bulk { position: static !important; }
    `)
    document.adoptedStyleSheets.push(style)
    await document.fonts.load("1rem metrics")
    const main = document.querySelector("main")
    const walker = document.createTreeWalker(main, NodeFilter.SHOW_TEXT)
    const texts = []
    while (walker.nextNode()) texts.push(walker.currentNode)
    for (const text of texts) {
      if (text.parentElement.closest("select, textarea")) { text.data = ""; continue }
      const bars = text.data.split(/\s+/).filter(Boolean).map(word => {
        const bar = document.createElement("span")
        bar.className = "word"
        bar.style.width = `${Math.min(word.length, 24) * .5}em`
        return bar
      })
      text.replaceWith(...bars)
    }
    for (const field of main.querySelectorAll("input, textarea")) { field.placeholder = ""; if (!/checkbox|radio/.test(field.type)) field.value = "" }
    for (const live of document.querySelectorAll(".bar, .foot, .toasts")) live.remove()
  },

  // Reduces a picture of the page to the average colour of cells, by component. A box is rounded to whole pixels.
  async reduced([picture, cell]) {
    const image = await createImageBitmap(await (await fetch(`data:image/png;base64,${picture}`)).blob())
    return [...document.querySelectorAll("[data-component]")].map(component => {
      const box = component.getBoundingClientRect()
      const [left, top] = [Math.round(box.left + scrollX), Math.round(box.top + scrollY)]
      const [width, height] = [Math.round(box.width), Math.round(box.height)]
      const [columns, rows] = [Math.ceil(width / cell), Math.ceil(height / cell)]
      const canvas = new OffscreenCanvas(columns * cell, rows * cell)
      const context = canvas.getContext("2d", { willReadFrequently: true })
      context.drawImage(image, left, top, width, height, 0, 0, width, height)
      const { data } = context.getImageData(0, 0, columns * cell, rows * cell)
      const cells = []
      for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
        const sum = [0, 0, 0]
        for (let y = 0; y < cell; y++) for (let x = 0; x < cell; x++) {
          const at = ((row * cell + y) * columns * cell + column * cell + x) * 4
          for (let i = 0; i < 3; i++) sum[i] += data[at + i]
        }
        cells.push(...sum.map(each => Math.round(each / cell / cell)))
      }
      return [component.dataset.component, width, height, cells]
    })
  },
})
