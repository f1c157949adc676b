// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/status"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/process"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// maxPeekedBytes bounds a record that is looked at for people; a pod has at most 1.5 MiB.
const maxPeekedBytes = 4 << 20

// recordsReport is what the files say of a node that does not answer. It decides nothing:
// what cannot be read is left out, and is the node's to judge.
func recordsReport(d directories, now time.Time) status.Report {
	r := reportOf(warmpool.Status{}, nil)
	r.Time, r.Running, r.Ledger = now, false, nil
	r.StateDir, r.CacheDir = d.StateDir, d.CacheDir
	owners := owners(d.StateDir)
	ids, _ := machinesOnDisk(d.StateDir)
	for _, id := range ids {
		m := owners[id]
		m.ID, m.State = id, status.StateEnded
		if works(filepath.Join(d.StateDir, "machines", id)) {
			m.State = status.StateRunning
		}
		r.Machines = append(r.Machines, m)
	}
	list, _ := quarantineDir(d.StateDir).List()
	for _, q := range list {
		r.Quarantine = append(r.Quarantine, status.Quarantine{Machine: q.Machine, Reason: q.Reason})
	}
	return r
}

// owners is what the records of pods and warm machines say of machines, by their ids.
func owners(stateDir string) map[string]status.Machine {
	of := map[string]status.Machine{}
	warm, _ := filepath.Glob(filepath.Join(stateDir, "warm", "*.json"))
	for _, path := range warm {
		var rec struct {
			Machine, PodUID, Pool, Namespace, Name string
			Created                                time.Time
			Warm                                   warmpool.Budget
		}
		if peek(path, &rec) {
			of[rec.Machine] = status.Machine{PodUID: rec.PodUID, Pool: rec.Pool, Template: rec.Namespace + "/" + rec.Name, Since: rec.Created, Budget: amounts(rec.Warm)}
		}
	}
	pods, _ := filepath.Glob(filepath.Join(stateDir, "pods", "*", "pod.json"))
	for _, path := range pods {
		var rec struct {
			Pod struct {
				Metadata struct{ Namespace, Name, UID string }
			}
			StartTime time.Time
			Machine   struct {
				ID     string
				Budget warmpool.Budget
			}
		}
		if !peek(path, &rec) || rec.Machine.ID == "" {
			continue
		}
		m := of[rec.Machine.ID]
		m.Pod, m.PodUID = rec.Pod.Metadata.Namespace+"/"+rec.Pod.Metadata.Name, rec.Pod.Metadata.UID
		m.Since, m.Budget = rec.StartTime, amounts(rec.Machine.Budget)
		of[rec.Machine.ID] = m
	}
	return of
}

func peek(path string, into any) bool {
	data, err := durable.ReadFile(durable.Host, path, maxPeekedBytes)
	return err == nil && json.Unmarshal(data, into) == nil
}

// works tells whether a process works in a machine's folder, as far as this user can see.
func works(dir string) bool {
	found, err := process.In(dir, "")
	for _, p := range found {
		p.Close()
	}
	return err == nil && len(found) > 0
}

// absence is why no node answers, and what to do. installed is the command that starts the
// service and the one that shows what it says; both empty when there is none.
func absence(d directories, failure error, start, logs string) (problem, remedy string) {
	pid := durable.Holder(d.StateDir)
	_, err := os.Stat(d.StateDir)
	switch {
	case failure != nil && !errors.Is(failure, errNoNode):
		return "The node could not be asked: " + failure.Error(), ""
	case pid != 0:
		remedy = "It is starting, ending, or busy: try again"
		if logs != "" {
			remedy += "; what it says: " + logs
		}
		return fmt.Sprintf("No node answers, and process %d has %s", pid, d.StateDir), remedy
	case start != "":
		return "The service is installed, and no node runs", "Start it by " + start + "; why it ended: " + logs
	case errors.Is(err, fs.ErrNotExist):
		return "No node ever ran with " + d.StateDir, "vk-firkin without arguments tells what to do next; --state-dir names another state folder"
	}
	return "No node runs with " + d.StateDir, "Start one by vk-firkin node, or let vk-firkin install make it a service; --state-dir names another state folder"
}
