"""The Replicate backend: its configuration and status. It cannot render yet."""

from __future__ import annotations

from ..config import secret
from ..errors import ImagenError
from ..settings import Key
from . import Ask, Collected, Instance, Lost, Plan, Sought, Status, Wait

KEYS = {
    "model": Key("string"),
    "api_token_env": Key("variable", "REPLICATE_API_TOKEN"),
    "base_url": Key("url"),
    "cancel_after_s": Key("seconds"),
}


class NotBuilt(ImagenError):
    """This version of imagen cannot render with Replicate"""

    code = "not_built"
    hint = "choose another backend; imagen-backends lists them"
    exit_status = 2


def open_instance(instance: Instance) -> Replicate:
    """Open a configured instance."""
    return Replicate(instance)


class Replicate:
    """One configured model at Replicate."""

    paid = True
    timeout_s = 60.0
    retry_s = 0.3

    def __init__(self, instance: Instance) -> None:
        """Take the instance."""
        self._model = str(instance.get("model", ""))
        self._token_env = str(instance.get("api_token_env", KEYS["api_token_env"].default))

    def plan(self, ask: Ask) -> Plan:
        """Refuse: nothing can be sent yet."""
        raise NotBuilt

    def submit(self, plan: Plan) -> str:
        """Refuse, as there is no plan."""
        raise NotBuilt

    def find(self, plan: Plan, lost: Lost) -> str | Sought:
        """Refuse, as there is no plan."""
        raise NotBuilt

    def collect(self, handle: str, wait: Wait, plan: Plan | None) -> Collected | None:
        """Refuse, as nothing was submitted."""
        raise NotBuilt

    def cancel(self, handle: str) -> None:
        """Leave it: a paid render is never cancelled by us."""

    def status(self, ask: bool) -> Status:
        """Tell whether the token is set; and that it would not help yet."""
        if not secret(self._token_env):
            return Status("not configured", f"set {self._token_env}")
        return Status("not built", "this version cannot render with Replicate")

    def about(self) -> dict[str, str]:
        """Give its model."""
        return {"model": self._model} if self._model else {}
