// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kit

// seekData is lseek(2)'s SEEK_DATA.
const seekData = 3
