// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package service_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/service"
)

// What was installed is read back, whatever its environment has in it, and is nobody else's to read.
func TestRead(t *testing.T) {
	for _, m := range []service.Manager{service.Systemd, service.Launchd} {
		target := service.Target{Manager: m, User: "ci", UID: os.Getuid(), Home: t.TempDir()}
		if _, err := service.Read(target); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s, before: %v", m, err)
		}
		want := service.Spec{
			Program: "/opt/vk-firkin", Args: []string{"node", "--state-dir=/s"}, StopTimeout: time.Hour,
			Env: map[string]string{"PASSWORD": `50% "of" $HOME \n ` + "`id`" + ` # 'x' <&> \`, "EMPTY": "", "A": "b=c"},
		}
		for range 2 { // an upgrade without an environment leaves none
			steps, err := service.Install(target, want, want.Program, true)
			if err != nil {
				t.Fatal(err)
			}
			var files []service.Step
			for _, s := range steps {
				if s.Run == nil {
					files = append(files, s)
				} else if last := s.Run[len(s.Run)-1]; (last == "vk-firkin.service" && s.Run[2] == "restart" || s.Run[1] == "bootout") && s.Patience != time.Hour {
					t.Errorf("%s waits for %s, the node may take an hour", s, s.Patience)
				}
			}
			if err := service.Do(t.Context(), files, func(service.Step) {}); err != nil {
				t.Fatal(err)
			}
			got, err := service.Read(target)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%s: %v (-want +got):\n%s", m, err, diff)
			}
			err = filepath.WalkDir(target.Home, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				data, err := os.ReadFile(path) //nolint:gosec // a file of this test
				if info, ierr := d.Info(); ierr != nil || strings.Contains(string(data), "PASSWORD") && info.Mode().Perm() != 0o600 {
					t.Errorf("%s: mode %v, %v", path, info.Mode(), ierr)
				}
				if want.Env == nil && strings.Contains(string(data), "PASSWORD") {
					t.Errorf("%s has the environment of the one before", path)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			want.Env = nil
		}
	}
	foreign := service.Target{Manager: service.Systemd, User: "ci", Home: t.TempDir()}
	if err := errors.Join(os.MkdirAll(filepath.Dir(foreign.Path()), 0o700), os.WriteFile(foreign.Path(), []byte("[Service]\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := service.Read(foreign); !errors.Is(err, service.ErrForeign) {
		t.Errorf("somebody else's: %v", err)
	}
}
