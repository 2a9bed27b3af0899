# Any: the annotations that come with this library contradict its own documentation.
from typing import Any

def __getattr__(name: str) -> Any: ...
