"""Allocation of the cache's pages to sequences, and sharing of common prefixes.

Pages are found again by the ids that they hold and by the pages before them: they form a tree (a trie of pages), in
which a page's children continue it. A new sequence shares the full pages of its longest known prefix and copies the
part of the next page that agrees. Unused pages are kept; when memory reaches its limit, the least recently used are
evicted.
"""

from collections.abc import Sequence as Ids
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llucid.cache import PAGE, Memory
from llucid.config import Config

NEWEST = 32
"""How many pages with the same first id are compared with a new text."""


class Page:
    """A page of the memory, and a node of the tree."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ids: list[int] = []
        """The tokens whose keys and values its first slots hold."""
        self.parent: Page | None = None
        self.children: dict[int, dict[Page, None]] = {}
        """The pages that continue this one, by first id, the newest last."""
        self.full: dict[tuple[int, ...], Page] = {}
        """Those of them that are full, by their ids."""
        self.users = 0
        self.last_used = 0

    def child_like(self, ids: Ids[int]) -> "tuple[Page | None, int]":
        """(a child with a long common prefix with `ids`, the length of that prefix): one of the same ids, or else the
        best of the newest."""
        if child := self.full.get(tuple(ids)):
            return child, PAGE
        best, most = None, 0
        for child in islice(reversed(self.children.get(ids[0], {})), NEWEST):
            same = common_prefix(child.ids, ids)
            if same > most or (same == most and best and child.users < best.users):
                best, most = child, same
        return best, most


def common_prefix(a: Ids[int], b: Ids[int]) -> int:
    """The length of the common prefix."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class Sequence:
    """The pages of one text, of which `length` tokens have been read."""

    def __init__(self, pages: list[Page], length: int) -> None:
        self.pages, self.length = pages, length
        self.numbers: NDArray[np.int32] = np.array([page.number for page in pages], np.int32)

    @property
    def room(self) -> int:
        """How many tokens fit into its pages."""
        return len(self.pages) * PAGE


class Part(NamedTuple):
    """New tokens of one sequence, which has room for them."""

    sequence: Sequence
    ids: Ids[int]
    scored: int
    """For how many of the last ids logits are computed."""
    unread: int
    """Tokens of the sequence that are still to be read, these included; decides between C and PyTorch."""


class Pages:
    """The memory of one engine, its pages, and the tree of their contents.

    `limit` bounds the memory, in bytes; None for no limit.
    """

    def __init__(self, config: Config, dtype: str, device: str = "cpu", limit: int | None = None) -> None:
        self.most = (1 << 31) // PAGE - 1
        if limit is not None:
            self.most = min(self.most, limit // (PAGE * Memory.bytes_per_slot(config, dtype)))
        self.memory = Memory(config, PAGE, dtype, device)
        self.root = Page(-1)
        self.root.users = 1
        self.kept: dict[int, Page] = {}
        """Pages in the tree that no sequence uses, by number: candidates for eviction."""
        self.used = bytearray(b"\1")
        """One byte per page: whether it is in use or kept. Page 0 is reserved for padding."""
        self.clock = 0

    def open(self, ids: Ids[int]) -> Sequence:
        """A new sequence that shares the longest known prefix of `ids`; its `length` says how long that is."""
        self.clock += 1
        pages: list[Page] = []
        node, length = self.root, 0
        while length < len(ids):
            page, same = node.child_like(ids[length : length + PAGE])
            if page is None:
                break
            if same == PAGE or (same == len(page.ids) and not page.users):
                self._use(page)
            else:  # the page continues differently, or another sequence is still filling it
                self._use(page)  # so that it is not evicted to make room for its copy
                copy = self._take(1)
                self._leave(page)
                if not copy:
                    break
                self.memory.copy_page(page.number, copy[0].number, same)
                page = copy[0]
                self._put(page, node, ids[length : length + same])
            pages.append(page)
            node, length = page, length + same
            if same < PAGE:
                break
        return Sequence(pages, length)

    def shared(self, ids: Ids[int]) -> int:
        """The length of the longest known prefix of `ids`."""
        node, length = self.root, 0
        while length < len(ids):
            page, same = node.child_like(ids[length : length + PAGE])
            length += same
            if page is None or same < PAGE:
                break
            node = page
        return length

    def extend(self, sequence: Sequence, length: int, more: int = 0) -> bool:
        """Gives the sequence room for `length` tokens, and for `more` if memory allows; False if there is no room."""
        needed = -(-length // PAGE) - len(sequence.pages)
        if needed <= 0:
            return True
        pages = self._take(needed + more // PAGE, least=needed)
        sequence.pages += pages
        sequence.numbers = np.array([page.number for page in sequence.pages], np.int32)
        return len(pages) >= needed

    def commit(self, sequence: Sequence, ids: Ids[int]) -> None:
        """Records that these tokens were read into the sequence's next slots; from now on others can share them."""
        for token in ids:
            at, slot = divmod(sequence.length, PAGE)
            page = sequence.pages[at]
            if slot:
                page.ids.append(token)
                if slot == PAGE - 1 and page.parent:
                    page.parent.full.setdefault(tuple(page.ids), page)
            else:
                self._put(page, sequence.pages[at - 1] if at else self.root, [token])
            sequence.length += 1

    def close(self, sequence: Sequence) -> None:
        """Ends a sequence. Its pages are kept for sharing until memory is needed."""
        self.clock += 1
        for page in reversed(sequence.pages):
            self._leave(page)
        sequence.pages, sequence.length = [], 0

    def restore(self) -> None:
        """Ends all sequences, after an exception that left them or the counts of their pages incomplete."""
        self.used, self.kept = bytearray(b"\1").ljust(self.memory.slots // PAGE, b"\0"), {}
        tree = [self.root]
        for parent in tree:
            for page in chain.from_iterable(parent.children.values()):
                self.used[page.number], page.users = 1, 0
                self.kept[page.number] = page
                tree.append(page)

    def _put(self, page: Page, parent: Page, ids: Ids[int]) -> None:
        page.parent, page.ids = parent, list(ids)
        parent.children.setdefault(ids[0], {})[page] = None

    def _use(self, page: Page) -> None:
        if not page.users:
            del self.kept[page.number]
        page.users += 1

    def _leave(self, page: Page) -> None:
        page.users -= 1
        page.last_used = self.clock
        if page.users == 0:
            if page.parent is None:  # nothing has been read into it
                self.used[page.number] = 0
            else:
                self.kept[page.number] = page

    def _take(self, count: int, least: int | None = None) -> list[Page]:
        """`count` pages, adjacent if possible; `least` pages if there are not more; [] if there are fewer than that."""
        least = count if least is None else least
        for wanted in dict.fromkeys((count, least)):
            start = self.used.find(bytes(wanted))
            if start < 0 and (size := len(self.used)) + wanted <= self.most:
                self._grow(min(self.most, max(size + wanted, 2 * size)))
                start = self.used.find(bytes(wanted))
            if start >= 0:
                return self._mark_used(range(start, start + wanted))
        free = [number for number, used in enumerate(self.used) if not used]
        if len(free) < least and len(self.used) < self.most:
            self._grow(self.most)
            free = [number for number, used in enumerate(self.used) if not used]
        if len(free) < least:
            free += self._evict(least - len(free))
        return self._mark_used(free[:least]) if len(free) >= least else []

    def _mark_used(self, numbers: Any) -> list[Page]:
        pages = [Page(number) for number in numbers]
        for page in pages:
            self.used[page.number] = page.users = 1
        return pages

    def _grow(self, pages: int) -> None:
        self.memory.grow(pages * PAGE)
        self.used += bytes(pages - len(self.used))

    def _evict(self, count: int) -> list[int]:
        """Frees `count` kept pages or more, if there are so many: leaves of the tree first, the least recently used
        first. A sixteenth of all, so that looking for them takes little time."""
        freed: list[int] = []
        count = max(count, len(self.kept) // 16)
        while len(freed) < count:
            ends = [page for page in self.kept.values() if not any(page.children.values())]
            if not ends:
                break
            for page in sorted(ends, key=lambda page: page.last_used)[: count - len(freed)]:
                assert page.parent
                siblings = page.parent.children[page.ids[0]]
                del siblings[page]
                if page.parent.full.get(tuple(page.ids)) is page:
                    del page.parent.full[tuple(page.ids)]
                if not siblings:
                    del page.parent.children[page.ids[0]]
                del self.kept[page.number]
                self.used[page.number] = 0
                freed.append(page.number)
        return freed
