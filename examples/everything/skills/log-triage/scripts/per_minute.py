"""Counts lines by the minute of their time stamps: python3 per_minute.py < app.log"""

import collections
import re
import sys

MINUTE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")

counts = collections.Counter(found.group() for line in sys.stdin if (found := MINUTE.search(line)))
for minute, count in sorted(counts.items()):
    print(f"{minute}  {count}")
