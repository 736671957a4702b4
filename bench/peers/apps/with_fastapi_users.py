"""fastapi-users with Beanie, a cookie, and its database strategy, as its documentation shows.

The cookie has a token that is stored in the database. fastapi-users reads the token and then the
user in each request, so a session can be revoked, as in quartapp. The roles are names in the user's
document.
"""

# The packages are in an environment of their own (bench/peers/requirements.txt), where the type
# checker does not look. Beanie is a newer version there than quartapp's.
# pyright: reportMissingImports=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Annotated, Any

from beanie import Document, PydanticObjectId, init_beanie
from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse
from fastapi.templating import Jinja2Templates
from fastapi_users import BaseUserManager, FastAPIUsers, schemas
from fastapi_users.authentication import AuthenticationBackend, CookieTransport
from fastapi_users.authentication.strategy.db import AccessTokenDatabase, DatabaseStrategy
from fastapi_users.db import BeanieBaseUser, BeanieUserDatabase, ObjectIDIDMixin
from fastapi_users_db_beanie.access_token import BeanieAccessTokenDatabase, BeanieBaseAccessToken
from pydantic import BaseModel
from pymongo import AsyncMongoClient
from wtforms import Form

from bench.peers.apps import page


class User(page.Viewer, BeanieBaseUser, Document):
    username: str
    roles: list[str] = []


class AccessToken(BeanieBaseAccessToken, Document):
    pass


class UserCreate(schemas.BaseUserCreate):
    username: str
    roles: list[str] = []


class Me(BaseModel):
    username: str
    roles: list[str]
    permissions: list[str]


class PasswordForm(page.PasswordFields, Form):
    pass


class UserManager(ObjectIDIDMixin, BaseUserManager[User, PydanticObjectId]):
    reset_password_token_secret = page.SECRET_KEY
    verification_token_secret = page.SECRET_KEY


async def get_user_db() -> AsyncIterator[BeanieUserDatabase]:
    yield BeanieUserDatabase(User)


async def get_access_token_db() -> AsyncIterator[BeanieAccessTokenDatabase]:
    yield BeanieAccessTokenDatabase(AccessToken)


async def get_user_manager(
    user_db: Annotated[BeanieUserDatabase, Depends(get_user_db)],
) -> AsyncIterator[UserManager]:
    yield UserManager(user_db)


def get_database_strategy(
    tokens: Annotated[AccessTokenDatabase[AccessToken], Depends(get_access_token_db)],
) -> DatabaseStrategy:
    return DatabaseStrategy(tokens, lifetime_seconds=3600)


backend = AuthenticationBackend(
    name="database",
    transport=CookieTransport(cookie_max_age=3600),
    get_strategy=get_database_strategy,
)
fastapi_users = FastAPIUsers[User, PydanticObjectId](get_user_manager, [backend])
current_active_user = fastapi_users.current_user(active=True)
CurrentUser = Annotated[User, Depends(current_active_user)]
templates = Jinja2Templates(page.TEMPLATES)
page.prepare(templates.env)
# FastAPI has neither of these, and no protection against cross-site requests.
templates.env.globals.update(
    g=SimpleNamespace(), get_flashed_messages=lambda **_: [], csrf_field=lambda: ""
)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    client = AsyncMongoClient(page.MONGODB_URI, uuidRepresentation="standard")
    await init_beanie(client["peers_fastapi"], document_models=[User, AccessToken])
    manager = UserManager(BeanieUserDatabase(User))
    for name in page.USERNAMES:
        await manager.create(
            UserCreate(
                email=f"{name}@example.org",
                password=page.PASSWORD,
                username=name,
                roles=["member"],
            )
        )
    yield
    await client.close()


app = FastAPI(lifespan=lifespan)
app.include_router(fastapi_users.get_auth_router(backend), prefix="/auth")


@app.get(page.PATH, response_class=HTMLResponse)
async def password(request: Request, user: CurrentUser) -> Any:
    context = {
        "current_user": user,
        "form": PasswordForm(),
        "action": request.url.path,
        "path": request.url.path,
    }
    return templates.TemplateResponse(request, page.TEMPLATE, context)


@app.get("/api/me")
async def me(user: CurrentUser) -> Me:
    return Me(username=user.username, roles=user.roles, permissions=user.permissions)
