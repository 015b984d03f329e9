"""The ledger: what this machine requested, paid and made. The one importer of sqlite3."""

from .comparisons import Comparison, Comparisons
from .database import Database, LedgerBusy, LedgerFault
from .deliveries import Deliveries
from .journal import Entry, Journal
from .ledger import Ledger, opened, required
from .uploads import Uploads
from .usage import Usage

__all__ = [
    "Comparison",
    "Comparisons",
    "Database",
    "Deliveries",
    "Entry",
    "Journal",
    "Ledger",
    "LedgerBusy",
    "LedgerFault",
    "Uploads",
    "Usage",
    "opened",
    "required",
]
