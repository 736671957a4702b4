"""What each route requires. A route that is missing here, or a row without a route, fails a test.

`anyone`                    also those who are not signed in
`signed in`                 any active session, whatever its roles
`<permission>`              a session whose roles grant it; one of several that are joined by "or"
`author`                    the author, while they have posts.write
`author or <permission>`    the author, or a user with the permission
`returning`                 a user who has just signed in to their closed account

A POST that is `fresh` also needs a recent authentication. Changing the password asks for the
current one instead.

In production there is no /dev, and /metrics requires a token: see test_health. HEAD is allowed with
GET, and OPTIONS lists the methods for anyone. Other methods are 405.
"""

from typing import NamedTuple

TABLE = """
GET        /static/<path:filename>                        anyone
GET        /livez                                         anyone
GET        /readyz                                        anyone
GET        /metrics                                       anyone
GET        /                                              anyone
GET POST   /register                                      anyone
POST       /password/strength                             anyone
GET POST   /login                                         anyone
GET POST   /login/factor                                  anyone
GET        /login/factor/options                          anyone
GET        /login/passkey/options                         anyone
POST       /login/passkey                                 anyone
GET POST   /setup/<token>                                 anyone
GET POST   /forgot                                        anyone
GET        /forgot/sent                                   anyone
GET POST   /invited/<token>                               anyone
GET POST   /reset/<token>                                 anyone
GET POST   /verify/<token>                                anyone
GET POST   /undo/<token>                                  anyone
GET        /dev/components                                anyone
GET        /dev/mail                                      anyone
GET        /dev/mail/<name>                               anyone
POST       /logout                                        signed in
GET        /api/me                                        signed in
WS         /ws                                            signed in

GET POST   /confirm                                       signed in
GET        /confirm/options                               signed in

GET        /account                                       signed in
GET        /account/security                              signed in
GET POST   /account/profile                               signed in
GET POST   /account/preferences                           signed in
GET POST   /account/password                              signed in
GET POST   /account/email                                 signed in, fresh
POST       /account/email/keep                            signed in
GET POST   /verify                                        signed in
POST       /account/email/again                           signed in
GET        /account/factors                               signed in
GET POST   /account/factors/totp                          signed in, fresh
POST       /account/factors/totp/remove                   signed in, fresh
GET POST   /account/factors/passkeys                      signed in, fresh
GET        /account/factors/passkeys/options              signed in
POST       /account/factors/passkeys/<passkey_id>/rename  signed in, fresh
POST       /account/factors/passkeys/<passkey_id>/remove  signed in, fresh
GET        /account/factors/recovery-codes                signed in
POST       /account/factors/recovery-codes                signed in, fresh
GET        /account/sessions                              signed in
POST       /account/sessions/<session_id>/end             signed in, fresh
POST       /account/sessions/end-others                   signed in, fresh
GET        /account/timeline                              signed in
POST       /account/timeline/<event_id>/not-me            signed in, fresh
GET        /account/timeline/not-me                       signed in
GET POST   /account/export                                signed in, fresh
GET POST   /account/delete                                signed in, fresh
POST       /account/deactivate                            signed in, fresh
GET POST   /account/closed                                returning
GET POST   /account/roles                                 signed in
POST       /account/roles/requests/<request_id>/withdraw  signed in
GET        /account/notices                               signed in
GET        /account/notices/latest                        signed in
POST       /account/notices/<int:seq>/read                signed in
POST       /account/notices/read                          signed in

GET        /posts                                         anyone
GET        /posts/<post_id>                               anyone
GET POST   /posts/new                                     posts.write
GET POST   /posts/<post_id>/edit                          author
POST       /posts/<post_id>/draft                         author
POST       /posts/<post_id>/delete                        author or posts.moderate
POST       /posts/<post_id>/comments                      posts.write
POST       /comments/<comment_id>/delete                  author or posts.moderate
GET        /users/<username>                              signed in
GET        /receipts/<event_id>                           signed in
GET        /receipts/bulk/<bulk_id>                       signed in

GET        /admin                users.read or sessions.manage or users.manage or events.read
GET        /admin/users                                   users.read
GET POST   /admin/users/new                               users.manage, fresh
GET POST   /admin/users/bulk                              users.manage, fresh
GET        /admin/users/<username>                        users.read
GET        /admin/users/<username>/roles                  users.read
GET        /admin/users/<username>/sessions               users.read
GET        /admin/users/<username>/activity               users.read
POST       /admin/users/<username>/grants                 users.manage, fresh
GET POST   /admin/users/<username>/grants/<role_name>/revoke    users.manage, fresh
GET POST   /admin/users/<username>/sessions/end           sessions.manage, fresh
GET POST   /admin/users/<username>/factors/reset          users.manage, fresh
GET POST   /admin/users/<username>/disable                users.manage, fresh
POST       /admin/users/<username>/enable                 users.manage, fresh
POST       /admin/users/<username>/last-day               users.manage, fresh
GET        /admin/requests                                users.manage
POST       /admin/requests/<request_id>/grant             users.manage, fresh
POST       /admin/requests/<request_id>/decline           users.manage, fresh
GET POST   /admin/invitations                             users.manage, fresh
GET POST   /admin/invitations/<invitation_id>/withdraw    users.manage, fresh
POST       /admin/invitations/<invitation_id>/again       users.manage, fresh
GET POST   /admin/users/<username>/delete                 users.manage, fresh
POST       /admin/users/<username>/restore                users.manage, fresh
GET        /admin/roles                                   roles.manage
GET POST   /admin/roles/new                               roles.manage, fresh
GET POST   /admin/roles/<name>                            roles.manage, fresh
GET        /admin/roles/<name>/changes                    roles.manage
GET POST   /admin/roles/<name>/delete                     roles.manage, fresh
GET        /admin/sessions                                sessions.manage
GET POST   /admin/sessions/<session_id>/end               sessions.manage, fresh
GET        /admin/events                                  events.read
GET        /admin/events/export                           events.read
GET POST   /admin/events/<event_id>/undo                  events.read, fresh
"""


class Row(NamedTuple):
    method: str
    rule: str
    needs: str
    fresh: bool = False

    @property
    def permissions(self) -> list[str]:
        """Return the permissions of which one is enough."""
        return [word for word in self.needs.split(" or ") if "." in word]

    @property
    def done(self) -> int:
        """Return the status of a successful answer."""
        answers = ("/account/export", "/password/strength", "/posts/<post_id>/draft")
        return 303 if self.method == "POST" and self.rule not in answers else 200

    def __str__(self) -> str:
        return f"{self.method} {self.rule}"


def _rows() -> list[Row]:
    rows = []
    for line in filter(None, TABLE.splitlines()):
        methods, _, rest = line.partition("/")
        rule, needs = f"/{rest}".split(maxsplit=1)
        needs, _, fresh = needs.partition(", ")
        assert fresh in ("", "fresh"), line
        rows += [
            Row(method, rule, needs, bool(fresh) and method == "POST") for method in methods.split()
        ]
    return rows


MATRIX = _rows()
POSTS = [row for row in MATRIX if row.method == "POST"]
