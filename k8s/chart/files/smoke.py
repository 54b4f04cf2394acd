"""Ask a service for one question; status 0 if it gives one. Standard library only."""

import json
import sys
import urllib.request

PASSAGE = (
    "Quang hợp diễn ra trong lục lạp của tế bào thực vật. Chất diệp lục hấp thụ ánh sáng, năng "
    "lượng đó tách nước thành oxi và hiđro, rồi oxi thoát ra ngoài qua khí khổng của lá."
)

request = urllib.request.Request(
    f"{sys.argv[1]}/generate",
    data=json.dumps({"context": PASSAGE}).encode(),
    headers={"Content-Type": "application/json"},
)
with urllib.request.urlopen(request, timeout=300) as response:
    answer = json.load(response)
for question in answer["questions"]:
    print(question["question"], question["options"], question["key"])
sys.exit(0 if answer["questions"] else "no question came")
