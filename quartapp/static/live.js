// Connects an open page to /ws: follows permissions, shows notifications, and locks the page when its session has ended.

let { session, cursor: countedTo } = pageData // countedTo: the newest notification that the badge counts
const { username } = pageData
const main = first("main")
const dialog = (window.dialog = first("#ended"))
let unread = Number(first("[data-unread]").textContent)

// The answer to a rejected POST is a page with its form. Show the URL of that page, which can be reloaded.
if ("refused" in pageData) history.replaceState(null, "", here)

let socket = null
let attempt = 0
let retry, watchdog, silence, stateText, dialogTimer
let submittedAt = 0 // when a form was submitted; Firefox then closes the socket, even if the answer is a download
let leavingAt = 0 // when a form was submitted whose answer replaces this page
let over = false // the session has ended or belongs to another page: never connect again
let stopped = false // the server and this script disagree about the protocol: never connect again
let version = Number(pageData.version)
let permissions = new Set(pageData.permissions.split(" "))
let pageRefused = !pageAllowed()
let cursor = sessionStorage[`cursor:${user}`] || countedTo
const received = new Set() // ids of messages that were handled

connect()

// The connection

function connect() {
  clearTimeout(retry)
  if (over || stopped || socket) return
  const topics = all("[data-topics]").flatMap(part => part.dataset.topics.split(" "))
  const query = new URLSearchParams({ page: location.pathname, unread, ...(cursor && { cursor }), ...(topics.length && { topics: [...new Set(topics)] }) })
  const mine = (socket = new WebSocket(`${location.origin.replace("http", "ws")}/ws?${query}`))
  const begun = Date.now()
  mine.onmessage = event => socket === mine && receive(JSON.parse(event.data))
  mine.onclose = event => socket === mine && handleClose(event, Date.now() - begun)
}

function clearTimers() {
  for (const timer of [retry, watchdog, silence]) clearTimeout(timer)
}

function disconnect() {
  clearTimers()
  const old = socket
  socket = null
  old?.close()
}

async function handleClose({ code, reason }, lived) {
  socket = null
  clearTimers()
  if (over) return
  if (code === 4401) return lockWithReason()
  // The server did not accept a message of this script. Reconnecting would not help.
  if (code === 4400) return (stopped = true, showState("stopped"))
  showState("reconnecting")
  // A server may fail right after each handshake, so only a connection that lasted resets the back-off.
  if (code === 1012 || lived > 10_000) attempt = 0
  if (code === 1013) attempt = Math.max(attempt, 3)
  const justSubmitted = Date.now() - submittedAt < 10_000
  const longest = justSubmitted && attempt === 0 ? 0.3 : Math.min(30, 2 ** attempt)
  attempt++
  // A browser reports a rejected handshake and a lost connection as 1006. Ask the server which it was.
  if (code === 1006 && !(await mayReconnect())) return
  // A server that shuts down tells each page when to reconnect, so that they do not reconnect all at once.
  const delay = code === 1012 && Number(/in (\d+(\.\d+)?) s$/.exec(reason)?.[1])
  retry = setTimeout(connect, (delay || Math.random() * longest) * 1000)
}

// Returns { me }, or { ended } after the end of the session, or {} without an answer.
async function fetchCurrentSession() {
  try {
    // The header tells the server not to count this as use of the session, which would extend it.
    const headers = { "X-Background": "1" }
    const answer = await fetch("/api/me", { headers, signal: AbortSignal.timeout(10_000) })
    if (answer.status === 401) return { ended: (await answer.json().catch(() => null))?.ended ?? {} }
    if (answer.ok) return { me: await answer.json() }
  } catch {
    // No network.
  }
  return {}
}

// Returns whether to reconnect. Locks the page if its session has ended or another user is signed in.
async function mayReconnect() {
  const { me, ended } = await fetchCurrentSession()
  if (over) return false
  if (ended) lockEnded(ended)
  else if (me && (me.session !== session || me.username !== username)) lockForeign(me.username)
  return !over
}

// The server closed the socket with 4401. Lock the page, then fetch the reason if no session.ended message gave it.
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
  clearTimers()
  if (!over) {
    silence = setTimeout(showState, 30_000, "silent")
    watchdog = setTimeout(() => { disconnect(); connect() }, 90_000)
    showState("connected")
  }
  try {
    if (id === undefined || !received.has(id)) handlers[type]?.(message)
  } finally {
    if (id !== undefined) {
      received.add(id)
      send({ type: "ack", id })
    }
  }
}

function send(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message))
}

const handlers = {
  hello(message) {
    if (message.user.id !== user || message.session !== session) return lockForeign(message.user.username)
    if (!cursor) rememberCursor(message.cursor)
    applyPermissions(message)
  },

  ping({ at }) {
    send({ type: "pong", at })
  },

  "permissions.changed"(message) {
    if (!applyPermissions(message)) return
    const changes = { gained: message.added, lost: message.removed }
    const words = Object.keys(changes).filter(key => changes[key]?.length).map(key => say(key, { permissions: changes[key].join(", ") }))
    if (words.length && message.by) words.push(say("changedBy", message))
    if (words.length) toast(words.join(" "))
  },

  "session.started"({ session: { device, ip } }) {
    const link = Object.assign(element("a", say("review")), { href: "/account/sessions" })
    toast(say("signIn", { device, ip }), " ", link)
  },

  "session.ended"(message) {
    // If this page has just submitted a form (for example to sign out), the answer explains the end better than the
    // dialog does: the page is locked now, but the dialog waits for three seconds.
    lockEnded(message, Date.now() - leavingAt < 10_000 && 3000)
  },

  // regions.js replaces the elements that show these topics.
  "topics.changed"({ topics }) {
    announce(topics)
  },

  notice({ id, text }) {
    if (!isLater(id, cursor)) return
    rememberCursor(id)
    if (isLater(id, countedTo)) showUnread(unread + 1)
    toast(text)
  },

  "notices.read"({ unread, cursor: to }) {
    // The message does not count notifications that have arrived since.
    showUnread(unread + Math.max(0, cursor - to))
    if (isLater(to, countedTo)) countedTo = to
  },
}

function isLater(id, than) {
  return BigInt(id) > BigInt(than || 0)
}

function rememberCursor(id) {
  cursor = id
  sessionStorage[`cursor:${user}`] = id
}

// Permissions

// Applies the roles and permissions of a message unless newer ones are known. Returns whether it did.
function applyPermissions(message) {
  if (message.version < version) return false
  version = message.version
  permissions = new Set(message.permissions)
  showAllowed()
  setText("[data-roles]", message.roles.join(", ") || "none")
  setText("[data-permission-list]", [...permissions].sort().join(", ") || "none")
  updatePage(message.by)
  return true
}

function showAllowed() {
  for (const part of all("[data-needs]:not(main)")) part.hidden = !mayAny(part.dataset.needs)
}

function mayAny(needs) {
  return needs.split(" ").some(permission => permissions.has(permission))
}

function pageAllowed() {
  return !main.dataset.needs || mayAny(main.dataset.needs)
}

// Hides the content of a page that the user may no longer see, and loads it again when they may.
function updatePage(by) {
  if (pageAllowed() === !pageRefused) return
  pageRefused = !pageRefused
  if (pageRefused) hidePage(by)
  else keepDrafts(), location.assign(here)
}

function hidePage(by) {
  const forms = keepDrafts() ? main.querySelectorAll("form[data-draft]") : []
  const permission = main.dataset.needs.replaceAll(" ", " / ")
  const words = element("p", say(by ? "removedBy" : "removed", { by, permission }))
  words.className = "lede"
  main.className = "message-page"
  main.replaceChildren(element("h1", say("refused")), words)
  for (const form of forms) {
    main.append(element("p", say("unsendable")), form)
    for (const each of form.querySelectorAll("button")) each.disabled = true
  }
  main.focus()
}

// Notifications

// Shows a message for 12 seconds.
function toast(...content) {
  const close = button("×", () => box.remove())
  close.ariaLabel = say("dismiss")
  const box = element("div", element("p", ...content), close)
  box.className = "toast"
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
  setText("[data-unread]", unread)
  for (const part of all("[data-unread], [data-unread-words]")) part.hidden = !unread
  announce(["notices"])
}

function announce(topics) {
  dispatchEvent(new CustomEvent("topics:changed", { detail: topics }))
}

function showState(state) {
  const live = first("#live")
  live.hidden = false
  if (state === "reconnecting" && !navigator.onLine) state = "offline"
  const before = live.dataset.state
  if (before === state) return
  live.dataset.state = state
  const text = live.title = say(state) ?? ""
  clearTimeout(stateText)
  // A restart takes a second or two. Show nothing for so short a time.
  const wait = state === "reconnecting" && before !== "offline" ? 2000 : 0
  stateText = setTimeout(setText, wait, ".live-text", state === "connected" ? "" : text)
}

// Locking the page

function lockEnded({ session: ended = session, reason, message, by, at }, explainAfter) {
  const other = ended !== session // the reason belongs to a different session
  lock({
    title: say(reason === "signed_out" ? "signedOut" : "ended"),
    message: (!other && message) || say("over"),
    by: other ? "" : [by && by !== username && say("by", { by }), at && sayTime(at)].filter(Boolean).join(", "),
    action: say("again"),
    explainAfter,
  })
}

// Locks the page because this browser now has a different session, of the user `name`.
function lockForeign(name) {
  disconnect()
  lock({
    title: say("expired"),
    message: say(name === username ? "sameUser" : "otherUser", { name, username }),
    action: say("reload"),
  })
}

// Makes the page inert and never connects again. The dialog opens after `explainAfter` milliseconds.
function lock({ title, message, by, action, explainAfter }) {
  over = true
  clearTimers()
  if (isLocked()) return
  pageData.locked = ""
  showState("stopped")
  first("#ended-kept").hidden = !keepDrafts()
  for (const [part, text] of Object.entries({ title, message, by, action })) setText(`#ended-${part}`, text)
  first("#ended-by").hidden = !by
  first("#ended-action").href = `/login?${new URLSearchParams({ ended: session, next: here })}`
  if (!explainAfter) return openDialog()
  for (const part of all("body > :not(.ended)")) part.inert = true
  dialogTimer = setTimeout(openDialog, explainAfter)
}

function openDialog() {
  clearTimeout(dialogTimer)
  if (dialog.open) return
  dialog.oncancel = event => event.preventDefault()
  // Browsers close a dialog on the second Escape even if the cancel event is prevented.
  dialog.onclose = () => dialog.showModal()
  dialog.showModal()
}

// Continues with the new session of the same user.
window.unlock = mine => {
  disconnect()
  delete pageData.locked
  clearTimeout(dialogTimer)
  for (const part of all("[inert]")) part.inert = false
  dialog.onclose = null
  dialog.close()
  const { activeElement } = document
  activeElement.blur()
  activeElement.focus({ preventScroll: true })
  session = mine
  over = stopped = false
  version = attempt = 0
  connect()
}

// Asks drafts.js to store unsaved text. Returns whether there is a draft for a form of this page.
function keepDrafts() {
  return !dispatchEvent(new Event("draft:keep", { cancelable: true }))
}

// Events of the browser

addEventListener("submit", event => {
  if (event.defaultPrevented) return
  submittedAt = Date.now()
  if (!("download" in event.target.dataset)) leavingAt = submittedAt
})

addEventListener("topics:shown", showAllowed)

addEventListener("offline", () => over || stopped || showState("offline"))

// After a change of network, a dead connection can look open for minutes.
addEventListener("online", () => {
  disconnect()
  if (!over && !stopped) showState("reconnecting")
  reconnectNow()
})

addEventListener("visibilitychange", () => document.hidden || reconnectNow())

// An open popover is in the top layer, where the layout for the other width does not apply. Close it.
matchMedia("(min-width: 60rem)").addEventListener("change", () => {
  for (const menu of all("[popover]:popover-open")) menu.hidePopover()
})

addEventListener("pagehide", disconnect)

addEventListener("pageshow", async event => {
  if (!event.persisted) return
  // Timers do not run in the back/forward cache, so the dialog may not have opened.
  if (over) return openDialog(), location.assign(here)
  if (!stopped) showState("reconnecting")
  if (await mayReconnect()) reconnectNow()
})
