// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durable

// CannotLock is what LockFile goes by: no test has a file system without locks.
var CannotLock = cannotLock
