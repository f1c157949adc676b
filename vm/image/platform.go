// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// choosePlatform picks the image for linux and arch from an index. Of several
// the plainest wins: on amd64 one without a variant or "v1", on arm64 one without or
// "v8", because the others may need instructions that a machine's CPU model
// lacks. The error is ErrPlatform and names what there is.
func choosePlatform(all []v1.Descriptor, arch string) (v1.Descriptor, error) {
	baseline := map[string]string{"amd64": "v1", "arm64": "v8"}[arch]
	var fallback *v1.Descriptor
	var there []string
	for i, d := range all {
		p := d.Platform
		if p == nil {
			there = append(there, "unknown")
			continue
		}
		if p.OS == "unknown" && p.Architecture == "unknown" {
			continue // an attestation, not an image
		}
		if p.OS == "linux" && p.Architecture == arch {
			if p.Variant == "" || p.Variant == baseline {
				return d, nil
			}
			if fallback == nil {
				fallback = &all[i]
			}
		}
		there = append(there, platformName(p.OS, p.Architecture, p.Variant))
	}
	if fallback != nil {
		return *fallback, nil
	}
	return v1.Descriptor{}, platformError(there, arch)
}

// checkPlatform checks an image's own word on its platform.
func checkPlatform(os, arch, want string) error {
	if os == "linux" && arch == want {
		return nil
	}
	return platformError([]string{platformName(os, arch, "")}, want)
}

func platformError(there []string, arch string) error {
	slices.Sort(there)
	there = slices.Compact(there)
	if len(there) > 16 { // enough for people; a hostile index has thousands
		there = append(there[:16], "...")
	}
	if len(there) == 0 {
		there = []string{"nothing"}
	}
	return fmt.Errorf("%w: there is %s, this node wants linux/%s", ErrPlatform, strings.Join(there, ", "), arch)
}

func platformName(os, arch, variant string) string {
	clean := func(s string) string {
		if s == "" {
			return "unknown"
		}
		return fmt.Sprintf("%.32s", strings.Trim(fmt.Sprintf("%q", s), `"`))
	}
	n := clean(os) + "/" + clean(arch)
	if variant != "" {
		n += "/" + clean(variant)
	}
	return n
}
