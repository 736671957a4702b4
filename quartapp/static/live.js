// Connects an open page to /ws: follows permissions, shows notifications, and locks the page when its session ends.

const { username } = pageData
const main = first("main")
let { session } = pageData
let unread = Number(first("[data-unread]").textContent)
let countedTo = Number(pageData.cursor) // the newest notification that the badge counts
let cursor = Number(sessionStorage[`cursor:${user}`] ?? countedTo) // the newest notification that was shown

// The answer to a rejected POST is a page with its form. Show the URL of that page, which can be reloaded.
if ("refused" in pageData) history.replaceState(null, "", here)

let socket = null
let attempt = 0
let timer // the next step of the connection: to connect again, or to look at a silent socket
let stateText
let heardAt = Date.now() // the last message
let submittedAt = 0 // when a form was submitted; Firefox then closes the socket, even if the answer is a download
let leavingAt = 0 // when a form was submitted whose answer replaces this page
let stopped = false // never connect again: the page is locked, or the server and this script disagree about the protocol
let version = Number(pageData.version)
let permissions = new Set(pageData.permissions.split(" "))
let pageRefused = !mayAny(main.dataset.needs)
const stale = first("#stale") // if silent pages are covered

connect()
if (stale) setInterval(coverIfStale, 1000)

// The connection

function connect() {
  clearTimeout(timer)
  if (stopped || socket) return
  const topics = new Set(all("[data-topics]").flatMap(part => part.dataset.topics.split(" ")))
  const query = new URLSearchParams({ page: location.pathname, cursor, unread, topics: [...topics] })
  const mine = (socket = new WebSocket(`/ws?${query}`))
  const begun = Date.now()
  mine.onmessage = event => socket === mine && receive(JSON.parse(event.data))
  mine.onclose = event => socket === mine && handleClose(event, Date.now() - begun)
}

function disconnect() {
  const old = socket
  socket = null
  clearTimeout(timer)
  old?.close()
  if (!stopped) showState("reconnecting")
}

function stop() {
  stopped = true
  clearTimeout(timer)
  showState("stopped")
}

async function handleClose({ code, reason }, lived) {
  disconnect()
  if (stopped) return
  if (code === 4401) return lockWithReason()
  // The server rejects what this script sends, so reconnecting would not help.
  if (code === 4400) return stop()
  // A server may fail right after each handshake, so only a connection that lasted resets the back-off.
  if (code === 1012 || lived > 10_000) attempt = 0
  if (code === 1013) attempt = Math.max(attempt, 3)
  const longest = attempt === 0 && Date.now() - submittedAt < 10_000 ? 0.3 : Math.min(30, 2 ** attempt)
  attempt++
  // A browser reports a rejected handshake and a lost connection as 1006. Ask the server which it was.
  if (code === 1006 && !(await mayReconnect())) return
  // A server that shuts down tells each page when to reconnect, so that not all do at once.
  const delay = code === 1012 && Number(/in ([\d.]+) s$/.exec(reason)?.[1])
  timer = setTimeout(connect, (delay || Math.random() * longest) * 1000)
}

// Returns { me }, or { ended } after the end of the session, or {} without an answer.
async function fetchCurrentSession() {
  const answer = await fetch("/api/me", { headers: background, signal: AbortSignal.timeout(10_000) }).catch(() => {})
  const found = await answer?.json().catch(() => {})
  if (answer?.status === 401) return { ended: found?.ended ?? {} }
  return answer?.ok ? { me: found } : {}
}

// Returns whether to reconnect. Locks the page if its session has ended or another user is signed in.
async function mayReconnect() {
  const { me, ended } = await fetchCurrentSession()
  if (isLocked()) return false
  if (ended) lockEnded(ended)
  else if (me && (me.session !== session || me.username !== username)) lockForeign(me.username)
  return !isLocked()
}

// Locks the page, then fetches the reason, which no message has given.
async function lockWithReason() {
  lockEnded({})
  const { ended } = await fetchCurrentSession()
  if (ended?.session === session && ended.message) setText("#ended-message", ended.message)
}

function reconnectNow() {
  if (socket) return
  attempt = 0
  connect()
}

// Messages from the server

function receive(message) {
  const { type, id } = message
  // Silence is the only sign of a connection that was lost without a close, for example when a laptop was asleep.
  clearTimeout(timer)
  heardAt = Date.now()
  main.style.visibility = ""
  coverIfStale()
  if (!stopped) {
    timer = setTimeout(() => {
      showState("silent")
      timer = setTimeout(() => { disconnect(); connect() }, 60_000)
    }, 30_000)
    showState("connected")
  }
  try {
    handlers[type]?.(message)
  } finally {
    if (id !== undefined) send({ type: "ack", id })
  }
}

// Covers a page that has heard nothing for too long, until it hears again. Timers stop while a computer sleeps.
function coverIfStale() {
  if (!stale) return
  if (Date.now() - heardAt > stale.dataset.after * 1000 && !isLocked()) openDialog(stale)
  else closeDialog(stale)
}

function send(message) {
  socket?.send(JSON.stringify(message))
}

const handlers = {
  hello(message) {
    if (message.user.id !== user || message.session !== session) return lockForeign(message.user.username)
    rememberCursor(message.cursor)
    applyPermissions(message)
  },

  ping({ at }) {
    send({ type: "pong", at })
  },

  "permissions.changed"(message) {
    if (!applyPermissions(message)) return
    const changes = [["gained", message.added], ["lost", message.removed]].filter(([, list]) => list?.length)
    const words = changes.map(([key, list]) => say(key, { permissions: list.join(", ") }))
    if (words.length && message.by) words.push(say("changedBy", message))
    if (words.length) toast(words.join(" "))
  },

  "session.started"({ session: { device, ip } }) {
    toast(say("signIn", { device, ip }), " ", element("a", { href: "/account/sessions" }, say("review")))
  },

  "session.ended"(message) {
    // The answer to a form that was just sent, such as to sign out, explains the end better: the dialog waits for it.
    lockEnded(message, Date.now() - leavingAt < 10_000 && 3000)
  },

  "topics.changed"({ topics }) {
    refreshTopics(topics)
  },

  notice({ id, text }) {
    if (id <= cursor) return
    rememberCursor(id)
    if (id > countedTo) showUnread(unread + 1)
    toast(text)
  },

  "notices.read"({ unread, cursor: to }) {
    // The message does not count notifications that have arrived since.
    showUnread(unread + Math.max(0, cursor - to))
    countedTo = Math.max(countedTo, to)
  },
}

function rememberCursor(id) {
  sessionStorage[`cursor:${user}`] = cursor = Number(id)
}

// Permissions

// Applies the roles and permissions of a message unless newer ones are known. Returns whether it did.
function applyPermissions(message) {
  if (message.version < version) return false
  version = message.version
  permissions = new Set(message.permissions)
  showAllowed()
  // Parts whose permission has arrived are loaded.
  refreshTopics([])
  setText("[data-roles]", message.roles.join(", ") || say("none"))
  setText("[data-permission-list]", message.permissions.sort().join(", ") || say("none"))
  updatePage(message.by)
  return true
}

function showAllowed() {
  for (const part of all("[data-needs]:not(main)")) part.hidden = !mayAny(part.dataset.needs)
}

function mayAny(needs) {
  return !needs || needs.split(" ").some(permission => permissions.has(permission))
}

// Hides the content of a page that the user may no longer see, and loads it again when they may.
function updatePage(by) {
  if (mayAny(main.dataset.needs) !== pageRefused) return
  pageRefused = !pageRefused
  if (pageRefused) hidePage(by)
  else keepDrafts(), location.assign(here)
}

function hidePage(by) {
  const forms = keepDrafts() ? main.querySelectorAll("form[data-draft]") : []
  const permission = main.dataset.needs.replaceAll(" ", " / ")
  const words = say(by ? "removedBy" : "removed", { by, permission })
  main.className = "message-page"
  main.replaceChildren(element("h1", {}, say("refused")), element("p", { className: "lede" }, words))
  for (const form of forms) {
    main.append(element("p", {}, say("unsendable")), form)
    for (const each of form.querySelectorAll("button")) each.disabled = true
  }
  main.focus()
}

// Notifications

// Shows a message for 12 seconds.
function toast(...content) {
  const close = button("×", () => box.remove())
  close.ariaLabel = say("dismiss")
  const box = element("div", { className: "toast" }, element("p", {}, ...content), close)
  const region = first("#toasts")
  region.append(box)
  if (region.children.length > 4) region.firstElementChild.remove()
  dismissLater(box)
}

// Not while it has the pointer or the focus.
function dismissLater(box) {
  setTimeout(() => (box.matches(":hover, :focus-within") ? dismissLater(box) : box.remove()), 12_000)
}

function showUnread(count) {
  unread = count
  setText("[data-unread]", unread || "")
  refreshTopics(["notices"])
}

function showState(state) {
  const live = first("#live")
  live.hidden = false
  if (state === "reconnecting" && !navigator.onLine) state = "offline"
  const before = live.dataset.state
  if (before === state) return
  live.dataset.state = state
  const text = live.title = say(state)
  clearTimeout(stateText)
  // A restart takes a second or two. Show nothing for so short a time.
  const wait = state === "reconnecting" && before !== "offline" ? 2000 : 0
  stateText = setTimeout(setText, wait, ".live-text", state === "connected" ? "" : text)
}

// Locking the page

function lockEnded(end, explainAfter) {
  // The reason may belong to a different session.
  const { reason, message, by, at } = (end.session ?? session) === session ? end : {}
  lock({
    title: say(reason === "signed_out" ? "signedOut" : "ended"),
    message: message || say("over"),
    by: [by && by !== username && say("by", { by }), at && sayTime(at)].filter(Boolean).join(", "),
    action: say("again"),
  }, explainAfter)
}

// Locks the page: this browser has a different session now, of the user `name`.
function lockForeign(name) {
  disconnect()
  lock({
    title: say("expired"),
    message: say(name === username ? "sameUser" : "otherUser", { name, username }),
    action: say(name === username ? "continue" : "continueAs", { name }),
  })
}

// Makes the page inert and never connects again. The dialog opens after `explainAfter` milliseconds.
function lock(texts, explainAfter) {
  if (isLocked()) return
  pageData.locked = ""
  stop()
  first("#ended-kept").hidden = !keepDrafts()
  for (const [part, text] of Object.entries(texts)) setText(`#ended-${part}`, text)
  first("#ended-by").hidden = !texts.by
  first("#ended-action").href = `/login?${new URLSearchParams({ ended: session, next: here })}`
  if (!explainAfter) return openDialog(dialog)
  for (const part of all("body > :not(.ended)")) part.inert = true
  setTimeout(() => isLocked() && openDialog(dialog), explainAfter)
}

function openDialog(dialog) {
  if (dialog.open) return
  dialog.oncancel = event => event.preventDefault()
  // Browsers close a dialog on the second Escape even if the cancel event is prevented.
  dialog.onclose = () => dialog.showModal()
  dialog.showModal()
}

function closeDialog(dialog) {
  dialog.onclose = null
  dialog.close()
}

// Continues with the new session of the same user.
window.unlock = mine => {
  disconnect()
  delete pageData.locked
  for (const part of all("[inert]")) part.inert = false
  closeDialog(dialog)
  const { activeElement } = document
  activeElement.blur()
  activeElement.focus({ preventScroll: true })
  session = mine
  stopped = false
  version = attempt = 0
  connect()
}

// Events of the browser

addEventListener("submit", event => {
  if (event.defaultPrevented) return
  submittedAt = Date.now()
  if (!("download" in event.target.dataset)) leavingAt = submittedAt
})

addEventListener("topics:shown", showAllowed)

addEventListener("offline", () => stopped || showState("offline"))

// After a change of network, a dead connection can look open for minutes.
addEventListener("online", () => {
  disconnect()
  reconnectNow()
})

addEventListener("visibilitychange", () => {
  coverIfStale()
  if (!document.hidden) reconnectNow()
})

// An open popover is in the top layer, where the layout for the other width does not apply. Close it.
matchMedia("(min-width: 60rem)").addEventListener("change", () => {
  for (const menu of all(":popover-open")) menu.hidePopover()
})

// A restored page shows nothing until it hears from the server: its session may have ended.
addEventListener("pagehide", () => {
  disconnect()
  main.style.visibility = "hidden"
})

addEventListener("pageshow", async event => {
  if (!event.persisted) return
  // Timers do not run in the back/forward cache, so the dialog may not have opened.
  if (isLocked()) openDialog(dialog)
  if (stopped) return location.assign(here)
  if (await mayReconnect()) reconnectNow()
})
