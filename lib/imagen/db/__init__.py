"""PostgreSQL: the one importer of psycopg2."""

from .connection import Address, DatabaseBusy, DatabaseFault, address
from .database import SQL, VARIABLE, Database, Row, Transaction, chosen, parse_queries, queries
from .listener import Ear, Notify

__all__ = [
    "SQL",
    "VARIABLE",
    "Address",
    "Database",
    "DatabaseBusy",
    "DatabaseFault",
    "Ear",
    "Notify",
    "Row",
    "Transaction",
    "address",
    "chosen",
    "parse_queries",
    "queries",
]
