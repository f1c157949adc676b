// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package nodeledger

import "github.com/vk-firkin/vk-firkin/warmpool"

// stateWarm is the state of machines that no pod has.
const stateWarm warmpool.State = "warm"

// warmBudget is what warm machines hold.
func warmBudget(a *warmpool.Account) warmpool.Budget {
	var sum warmpool.Budget
	for _, m := range a.Machines {
		if m.State == stateWarm {
			sum.MilliCPU += m.Budget.MilliCPU
			sum.MemoryBytes += m.Budget.MemoryBytes
			sum.DiskBytes += m.Budget.DiskBytes
			sum.Slots += m.Budget.Slots
		}
	}
	return sum
}
