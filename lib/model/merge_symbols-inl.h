// The merge loop of byte-pair encoding, which both kinds of tokenizer share.
#include <queue>

namespace nibble {

template <class Priority, class Rank, class Emit>
void MergeSymbols(std::string_view text, const std::vector<size_t>& starts, const Rank& rank,
                  const Emit& emit) {
  struct Symbol {
    int previous, next;
    std::string_view piece;  // empty once merged into its left neighbour
  };
  struct Pair {
    Priority priority;
    int left, right;
    size_t bytes;  // of both pieces: a pair whose pieces have grown since is stale
  };
  const auto later = [](const Pair& a, const Pair& b) {
    return a.priority != b.priority ? a.priority > b.priority : a.left > b.left;
  };
  const int count = static_cast<int>(starts.size());
  std::vector<Symbol> symbols(starts.size());
  for (int i = 0; i < count; ++i) {
    const size_t end = i + 1 < count ? starts[i + 1] : text.size();
    symbols[i] = {i - 1, i + 1 < count ? i + 1 : -1, text.substr(starts[i], end - starts[i])};
  }
  std::priority_queue<Pair, std::vector<Pair>, decltype(later)> queue(later);
  const auto push = [&](int left, int right) {
    if (left < 0 || right < 0) return;
    const std::string_view a = symbols[left].piece, b = symbols[right].piece;
    Priority priority;
    if (rank(a, b, &priority)) queue.push({priority, left, right, a.size() + b.size()});
  };
  for (int i = 1; i < count; ++i) push(i - 1, i);
  while (!queue.empty()) {
    const Pair pair = queue.top();
    queue.pop();
    Symbol& left = symbols[pair.left];
    Symbol& right = symbols[pair.right];
    if (left.piece.empty() || right.piece.empty() ||
        left.piece.size() + right.piece.size() != pair.bytes) {
      continue;
    }
    left.piece = std::string_view(left.piece.data(), pair.bytes);  // neighbours lie side by side
    right.piece = {};
    left.next = right.next;
    if (right.next >= 0) symbols[right.next].previous = pair.left;
    push(left.previous, pair.left);
    push(pair.left, left.next);
  }
  for (int i = count > 0 ? 0 : -1; i >= 0; i = symbols[i].next) emit(symbols[i].piece);
}

}  // namespace nibble
