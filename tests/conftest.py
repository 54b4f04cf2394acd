"""What tests of several parts share: a passage, a question about it, and a quiet environment."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from mcq.question import Question

CONTEXT_VI = (
    "Bộ nhớ RAM là nơi máy tính giữ tạm chương trình và dữ liệu đang được xử lí. RAM có tốc độ "
    "đọc, ghi nhanh hơn ổ đĩa rất nhiều, nhưng nội dung của nó bị mất khi máy tắt nguồn. Ngược "
    "lại, ổ đĩa cứng HDD hoặc ổ thể rắn SSD lưu dữ liệu lâu dài, kể cả khi không có điện."
)
CONTEXT_EN = (
    "Photosynthesis takes place in the chloroplasts of plant cells. Chlorophyll absorbs light, and "
    "its energy splits water into oxygen and hydrogen. The oxygen leaves through the stomata."
)


@pytest.fixture
def context_vi() -> str:
    """A Vietnamese passage about memory."""
    return CONTEXT_VI


@pytest.fixture
def context_en() -> str:
    """An English passage about photosynthesis."""
    return CONTEXT_EN


@pytest.fixture
def question_vi() -> Question:
    """A sound question about the Vietnamese passage."""
    return Question(
        question="Điều gì xảy ra với nội dung của RAM khi máy tắt nguồn?",
        options={
            "A": "Được chép sang ổ đĩa",
            "B": "Bị mất",
            "C": "Được giữ nguyên",
            "D": "Được nén lại",
        },
        key="B",
    )
