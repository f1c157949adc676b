// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
)

// TestRecordsAtEveryFault: a pod's record is written, replaced, and removed with all that
// is in its directory, with a fault at every operation. The next process reads what was
// acknowledged or what was being written, never a half, and can remove all of it.
func TestRecordsAtEveryFault(t *testing.T) {
	modes := []durabletest.Mode{durabletest.EIO, durabletest.Full, durabletest.Crash, durabletest.CrashLosingData, durabletest.CrashLosingNames}
	durabletest.Every(t, modes, 13, func(t *testing.T, disk *durabletest.FS, dir string) {
		dir = filepath.Join(dir, "pods")
		rec := recordOf(testState(corev1.RestartPolicyAlways, 1))
		uid := rec.Pod.UID
		r := newRecords(dir, disk)
		rec.Machine = machineRecord{Generation: 1}
		wrote := r.save(rec)
		rec.Machine = machineRecord{Generation: 1, ID: "pod-1", Acquired: true}
		acquired := r.save(rec)
		removed := r.remove(uid)
		disk.Restart(t)

		r = newRecords(dir, durabletest.New(t, durable.Host, dir, durabletest.Fault{}))
		recs, broken, err := r.load()
		if err != nil || len(broken) != 0 || len(recs) > 1 {
			t.Fatalf("%v, %v, %v", recs, broken, err)
		}
		switch {
		case len(recs) == 0 && wrote == nil && acquired != nil && disk.Dead(): // its removal was not begun
			t.Errorf("it is gone after %v", acquired)
		case len(recs) == 1 && removed == nil:
			t.Error("it is there after it was removed")
		case len(recs) == 1 && acquired == nil && recs[0].Machine.ID != "pod-1":
			t.Errorf("its machine is not known: %+v", recs[0].Machine)
		case len(recs) == 1 && recs[0].Pod.UID != uid:
			t.Errorf("it is of pod %q", recs[0].Pod.UID)
		}
		if err := r.remove(uid); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(dir); err == nil && len(left) != 0 {
			t.Errorf("left %v", left)
		}
	})
}

// TestRecordsThatCannotBeRead are told apart, and stay as they are until somebody forgets
// them or removes their pod.
func TestRecordsThatCannotBeRead(t *testing.T) {
	good, err := recordFormat.Encode(*recordOf(testState(corev1.RestartPolicyAlways, 1)))
	if err != nil || !strings.HasPrefix(string(good), `{"kind":"pod","version":1,"pod":{`) {
		t.Fatalf("%s, %v", good, err)
	}
	for name, tt := range map[string]struct {
		content string
		want    error
	}{
		"before kinds":   {strings.Replace(string(good), `"kind":"pod",`, "", 1), nil},
		"unknown fields": {strings.Replace(string(good), `"pod":{`, `"later":1,"pod":{"field":{},`, 1), nil},
		"newer":          {strings.Replace(string(good), `"version":1`, `"version":2`, 1), durable.ErrNewer},
		"truncated":      {string(good[:len(good)/2]), durable.ErrCorrupt},
		"empty":          {"", durable.ErrCorrupt},
		"foreign":        {`{"kind":"warm-machine","version":1,"machine":"uid"}`, durable.ErrCorrupt},
		"without a pod":  {`{"kind":"pod","version":1}`, durable.ErrCorrupt},
		"another's":      {strings.Replace(string(good), `"uid":"uid"`, `"uid":"other"`, 1), durable.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecords(t.TempDir(), durable.Host)
			path := r.Path("uid")
			if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(tt.content), 0o600)); err != nil {
				t.Fatal(err)
			}
			recs, broken, err := r.load()
			if err != nil || len(recs)+len(broken) != 1 {
				t.Fatalf("%v, %v, %v", recs, broken, err)
			}
			if tt.want == nil {
				if len(recs) != 1 || recs[0].Pod.UID != "uid" {
					t.Errorf("%+v, %+v", recs, broken)
				}
				return
			}
			if len(broken) != 1 || broken[0].uid != "uid" || !errors.Is(broken[0].err, tt.want) {
				t.Fatalf("%v, %+v, want %v", recs, broken, tt.want)
			}
			rec := recordOf(testState(corev1.RestartPolicyAlways, 1))
			if err := r.save(rec); !errors.Is(err, tt.want) {
				t.Errorf("it was replaced: %v", err)
			}
			if data, err := os.ReadFile(path); err != nil || string(data) != tt.content {
				t.Errorf("it is %q, %v", data, err)
			}
			if err := errors.Join(r.forget("uid"), r.save(rec), r.remove("uid")); err != nil {
				t.Error(err)
			}
		})
	}
}

func FuzzRecord(f *testing.F) {
	good, err := recordFormat.Encode(*recordOf(testState(corev1.RestartPolicyAlways, 2)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"pod":{}}`))
	f.Add([]byte(`{"kind":"pod","version":3}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := recordFormat.Decode(data)
		if err != nil {
			if !durable.Unusable(err) {
				t.Error(err)
			}
			return
		}
		if rec.Pod == nil {
			t.Fatal("a record without a pod")
		}
		again, err := recordFormat.Encode(rec)
		if err != nil {
			t.Skip("times and quantities that JSON can read and not write")
		}
		if _, err := recordFormat.Decode(again); err != nil {
			t.Errorf("%s cannot be read: %v", again, err)
		}
	})
}
