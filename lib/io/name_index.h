// Look-up by name in a list that stays as it is. Sorted, not hashed: names come from hostile files,
// and a sort cannot be made quadratic by choosing them.
#ifndef NIBBLE_LIB_IO_NAME_INDEX_H_
#define NIBBLE_LIB_IO_NAME_INDEX_H_

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

namespace nibble {

// Names may not move or change while the index is used.
class NameIndex {
 public:
  NameIndex() = default;
  explicit NameIndex(std::vector<std::string_view> names) : names_(std::move(names)) {
    order_.resize(names_.size());
    std::iota(order_.begin(), order_.end(), size_t{0});
    std::sort(order_.begin(), order_.end(), [this](size_t a, size_t b) {
      return names_[a] != names_[b] ? names_[a] < names_[b] : a < b;
    });
  }

  static constexpr size_t kNone = SIZE_MAX;

  // The position of `name` in the list, or kNone.
  size_t Find(std::string_view name) const {
    const auto found =
        std::lower_bound(order_.begin(), order_.end(), name,
                         [this](size_t i, std::string_view n) { return names_[i] < n; });
    return found != order_.end() && names_[*found] == name ? *found : kNone;
  }

  // The position of a name that stands at an earlier position too, or kNone.
  size_t FindDuplicate() const {
    for (size_t i = 1; i < order_.size(); ++i) {
      if (names_[order_[i]] == names_[order_[i - 1]]) return order_[i];
    }
    return kNone;
  }

 private:
  std::vector<std::string_view> names_;
  std::vector<size_t> order_;
};

// The index of the names that `name_of` takes from each item.
template <class Items, class NameOf>
NameIndex IndexNames(const Items& items, const NameOf& name_of) {
  std::vector<std::string_view> names;
  names.reserve(std::size(items));
  for (const auto& item : items) names.emplace_back(name_of(item));
  return NameIndex(std::move(names));
}

}  // namespace nibble

#endif  // NIBBLE_LIB_IO_NAME_INDEX_H_
