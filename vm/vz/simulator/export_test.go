// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package simulator

// ConfigurationRules are the names of the rules that New checks.
func ConfigurationRules() []string {
	var names []string
	for _, r := range configurationRules {
		names = append(names, r.name)
	}
	return names
}

// MaxDisks is how many disks a machine can have.
const MaxDisks = maxDisks
