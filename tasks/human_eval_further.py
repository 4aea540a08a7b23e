"""Further calls for HumanEval, where its own asserts let plain mistakes through: the set `humaneval-strict`.

Written by hand, each valid by the problem's own text and without a tie or an unclear case, so that no right
solution fails on them; the reference gives the expected values. By task, argument tuples. The reference of
HumanEval/124 is itself wrong where a month has a 30th or 31st (its `and`/`or` lacks brackets): no such date is here.
"""

from __future__ import annotations

from typing import Any

FURTHER_CALLS: dict[str, list[tuple[Any, ...]]] = {
    "HumanEval/0": [([1.0, 2.0, 4.0], 1.0)],
    "HumanEval/10": [("xyy",), ("abb",), ("abcb",)],
    "HumanEval/19": [("nine eight seven six five four three two one zero",)],
    "HumanEval/20": [([1.0, -1.0, 5.0, 5.5],)],
    "HumanEval/24": [(2,)],
    "HumanEval/31": [(2,), (3,), (4,), (9,), (25,), (49,)],
    "HumanEval/32": [([1, -1, 0, 1],), ([-3000, 1],)],
    "HumanEval/35": [([5],)],
    "HumanEval/38": [("",), ("a",), ("ab",), ("abc",), ("abcd",), ("abcdefgh",)],
    "HumanEval/40": [([0, 3, 0],), ([1, -2, 1],), ([5, 1, -6],), ([0, 0, 0],)],
    "HumanEval/43": [([-1, 1],), ([0, 0],), ([0],)],
    "HumanEval/46": [(0,), (1,), (2,), (3,), (4,), (6,), (9,)],
    "HumanEval/59": [(4,), (6,), (8,), (9,), (10,), (15,), (16,), (25,), (49,), (77,), (98,)],
    "HumanEval/68": [([2],), ([1],), ([0],), ([3, 5],)],
    "HumanEval/71": [(2, 4, 2), (2, 2, 4), (4, 2, 2), (1, 6, 7), (7, 6, 7)],
    "HumanEval/72": [([3, 2, 3, 3], 19), ([1, 2, 2, 1], 10), ([1, 2, 3, 1], 10), ([1, 2, 3, 4, 1], 20)],
    "HumanEval/75": [(40,), (16,), (12,), (18,), (27,), (99,)],
    "HumanEval/76": [(4, 4), (1, 1), (2, 1), (8, 1), (3, 2)],
    "HumanEval/80": [("bcd",), ("aab",), ("aba",), ("abb",), ("abca",)],
    "HumanEval/81": [
        ([3.8, 3.5, 3.1, 2.8, 2.5, 2.1, 1.8, 1.5, 1.1, 0.8, 0.1, 0.0],), ([3.7, 3.3, 2.7, 2.3, 1.7, 1.3],),
    ],
    "HumanEval/85": [([4],), ([4, 2],), ([4, 2, 6, 8, 1],)],
    "HumanEval/94": [([0, 1, 2, 1, 4],), ([25, 7],), ([49, 5],), ([2],), ([3, 89, 9],)],
    "HumanEval/95": [({"p": "pineapple"},), ({"P": "pineapple"},), ({"p": 1, "Q": 2},)],
    "HumanEval/99": [
        (f"{sign}{text}",) for text in ("15.0", "1", "4.5", "0.5", "2.4", "2.6", "10", "2.50") for sign in ("", "-")
    ],
    "HumanEval/105": [([4, 6],), ([9, 7, 8],), ([3, 1, 9, 8, 7, 6, 5, 4, 2],), ([5, 5, 0, 10],)],
    "HumanEval/106": [(2,), (6,), (8,), (10,)],
    "HumanEval/108": [([12, 23, 34, -45, 0],), ([-45, -54, -10, 0, 100],), ([-1, -12, -21],), ([-123, 10],)],
    "HumanEval/114": [([1, -2],), ([2, 3],), ([5],), ([1, -1, -1],), ([2, -1, 2],)],
    "HumanEval/118": [("abd",), ("bad",), ("bAd",), ("badeg",)],
    "HumanEval/124": [
        *((f"{month:02}-00-2020",) for month in range(1, 13)),
        *((f"{month:02}-01-2020",) for month in range(0, 14)),
        *((f"{month:02}-29-2020",) for month in range(1, 13)),
        ("01-32-2020",), ("02-32-2020",), ("04-40-2020",), ("02-12-20-20",), ("02/12/2020",),
        ("02-30-2020",), ("02-31-2020",), ("04-31-2020",),
    ],
    "HumanEval/126": [([3, 1],), ([1, 3],), ([2, 2],), ([2, 2, 2],)],
    "HumanEval/127": [
        *(((0, length), (-1, 30)) for length in range(0, 12)),
        ((-1, 4), (0, 3)), ((1, 2), (2, 3)), ((1, 2), (4, 9)), ((-10, -1), (-8, 3)),
    ],
    "HumanEval/128": [([0, 3],), ([1, -2],), ([1, 2],), ([-1, -2, 3],), ([-1, 0],)],
    "HumanEval/129": [
        ([[1, 8, 2], [9, 3, 4], [5, 6, 7]], 4), ([[2, 8, 1], [3, 4, 9], [5, 6, 7]], 4),
        ([[5, 6, 7], [8, 4, 3], [1, 9, 2]], 5), ([[2, 3, 4], [5, 6, 8], [7, 9, 1]], 3),
        ([[3, 9, 4], [7, 1, 8], [2, 6, 5]], 4),
    ],
    "HumanEval/132": [("[",), ("[[",), ("]]",), ("[[]]",), ("[]]",)],
    "HumanEval/134": [("z",), ("A",), ("a",), ("Z",), ("ab z",), ("ab a",), ("ab {",), ("ab `",), ("ab 1",)],
    "HumanEval/135": [([2, 1],), ([3, 2, 4],), ([1, 5, 4, 6],)],
    "HumanEval/140": [("a ",), ("a   ",), ("a    ",), (" a",), ("   a",), ("a b  c   d",)],
    "HumanEval/139": [(2,), (3,), (6,)],
    "HumanEval/142": [([1, 4, 1, 9, 9],), ([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9],), ([2] * 14,)],
    "HumanEval/146": [([11],), ([10],), ([9],), ([13, 15, 12],)],
    "HumanEval/147": [(3,), (4,), (7,), (8,), (9,)],
    "HumanEval/150": [(4, 2, 0), (9, 2, 0), (2, 1, 0)],
    "HumanEval/151": [([4],), ([1],), ([2, 3],), ([-1e-07],)],
    "HumanEval/153": [("K", ["Bb2", "AB", "a123", "x_YESIMHERE"]), ("K", ["AB", "A"]), ("K", ["Ab", "A"])],
    "HumanEval/154": [("xyw", "xyw"), ("xyw", "ywx"), ("ab", "ba"), ("abc", "cba"), ("xabc", "bca"), ("abcd", "ad")],
    "HumanEval/157": [
        (10, 6, 8), (5, 13, 12), (48, 55, 73), (55, 73, 48), (73, 48, 55), (6, 8, 10), (12, 5, 13), (2, 2, 3),
    ],
    "HumanEval/163": [(7, 2), (2, 7), (9, 2), (1, 20), (8, 8)],
}  # fmt: skip
