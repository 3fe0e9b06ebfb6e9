/// What a random problem is meant to try.
package enum CaseFamily: String, CaseIterable, Sendable {
  /// Odd lengths, GQA ratios, head dimensions from 8 to 256, D_v unlike D.
  case shapes
  /// Causal and windowed masks, with more and fewer queries than keys.
  case masks
  /// Queries that see no key: more queries than keys under a causal mask, windows beside the keys, no keys at all.
  case emptyRows = "empty rows"
  /// Eight and more tiles of keys.
  case longKeys = "long keys"
  /// A few query rows over many keys.
  case decode
  /// Every kind of stride: both layouts, gaps, broadcast (0) and backward (negative) axes.
  case strides
  /// NaN behind the last key of each sequence and between the rows.
  case nanTails = "NaN tails"
  /// Large, shifted and one-hot-like scores.
  case magnitudes
  /// Softcaps, and scales of any sign.
  case scores
}
