"""Data modules: yours (`ConversationData`), the embedded world (`WorldData`), and the base of both."""

from dowser_pl.data.base import Conversation, MultimodalData, Question, Task
from dowser_pl.data.benchmarks import TaskFile
from dowser_pl.data.conversations import ConversationData
from dowser_pl.data.world import WorldData

__all__ = ["Conversation", "ConversationData", "MultimodalData", "Question", "Task", "TaskFile", "WorldData"]
