// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

// revisionDigits tell revisions of one template apart.
const revisionDigits = 16

// Revision is a digest of the spec: 16 hex digits. Controller and nodes compute the
// same. Pure.
func (s *SnapshotTemplateSpec) Revision() string {
	data, err := json.Marshal(s)
	if err != nil { // strings, numbers and quantities only: cannot happen
		panic(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])[:revisionDigits]
}
