// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	"k8s.io/apimachinery/pkg/api/resource"
)

// revisionDigits tell revisions of one template apart.
const revisionDigits = 16

// Revision is a digest of the spec: 16 hex digits. Controller and nodes compute the
// same, whichever of them decoded the object and however its quantities were written.
// Two specs of one meaning (1Gi and 1024Mi, a default written or left out) have one
// revision. Pure.
func (s *SnapshotTemplateSpec) Revision() string {
	data, err := json.Marshal(s.canonical())
	if err != nil { // strings, numbers and quantities only: cannot happen
		panic(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])[:revisionDigits]
}

// canonical is a copy with defaults and with one way to write each quantity.
func (s *SnapshotTemplateSpec) canonical() *SnapshotTemplateSpec {
	c := s.DeepCopy()
	c.Shape.CPU = *resource.NewMilliQuantity(s.Shape.CPU.MilliValue(), resource.DecimalSI)
	c.Shape.Memory = *resource.NewQuantity(s.Shape.Memory.Value(), resource.BinarySI)
	c.Default()
	if c.GuestOS == GuestLinux {
		c.GuestOS = "" // as it was before there were others: an upgrade changes no revision
	}
	return c
}

// Default sets what the API server sets where the user said nothing.
func (s *SnapshotTemplateSpec) Default() {
	if s.GuestOS == "" {
		s.GuestOS = GuestLinux
	}
	if s.BuildTimeoutSeconds == 0 {
		s.BuildTimeoutSeconds = 1800
	}
	if r := s.Readiness; r != nil {
		if r.TimeoutSeconds == 0 {
			r.TimeoutSeconds = 60
		}
		if r.PeriodSeconds == 0 {
			r.PeriodSeconds = 1
		}
		if r.HTTPGet != nil && r.HTTPGet.Path == "" {
			r.HTTPGet.Path = "/"
		}
	}
}
