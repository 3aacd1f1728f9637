// A board's thermal zone, fan, battery, mains adapter and P-states, for a virtual machine. The values lie in guest
// memory at BASE, where the host writes what the sensors say and reads what the levers were set to: drive.py has the
// same layout. Every P-state that the kernel sets goes to an I/O port, which the host sees too.
DefinitionBlock ("", "SSDT", 2, "TEMPER", "BOARD", 1)
{
    External (\_SB.CPUS.C000, DeviceObj)

    OperationRegion (LINE, SystemMemory, 0x3F000000, 0x100)
    Field (LINE, DWordAcc, NoLock, Preserve)
    {
        TMPK, 32,  // temperature, tenths of a kelvin
        ONAC, 32,  // 1: on mains
        BSTA, 32,  // battery: 1 discharging, 2 charging
        BRAT, 32,  // mW
        BREM, 32,  // mWh left
        BVOL, 32,  // mV
        FANL, 32,  // level that the fan was set to
        MOVE, 32   // how often it was set
    }

    Scope (\_SB)
    {
        Device (FAN0)
        {
            Name (_HID, EisaId ("PNP0C0B"))
            Method (_STA, 0) { Return (0x0F) }
            Name (_FIF, Package () { 0, 0, 0, 0 })
            Name (_FPS, Package ()
            {
                0,
                Package () { 0, 0xFFFFFFFF, 0, 0, 0 },
                Package () { 1, 0xFFFFFFFF, 2000, 200, 500 },
                Package () { 2, 0xFFFFFFFF, 4000, 300, 1500 },
                Package () { 3, 0xFFFFFFFF, 6000, 400, 3000 }
            })
            Method (_FSL, 1, Serialized)
            {
                FANL = Arg0
                MOVE = MOVE + 1
            }
            Method (_FST, 0, Serialized)
            {
                Local0 = Package () { 0, 0, 0 }
                Local0 [1] = FANL
                Local0 [2] = FANL * 2000
                Return (Local0)
            }
        }

        Device (ADP0)
        {
            Name (_HID, "ACPI0003")
            Name (_PCL, Package () { \_SB })
            Method (_STA, 0) { Return (0x0F) }
            Method (_PSR, 0) { Return (ONAC) }
        }

        Device (BAT0)
        {
            Name (_HID, EisaId ("PNP0C0A"))
            Name (_UID, 0)
            Name (_PCL, Package () { \_SB })
            Method (_STA, 0) { Return (0x1F) }
            Method (_BIF, 0)
            {
                Return (Package () { 0, 20000, 20000, 1, 11100, 2000, 1000, 10, 10, "board", "1", "LION", "temperd" })
            }
            Method (_BST, 0, Serialized)
            {
                Local0 = Package () { 0, 0, 0, 0 }
                Local0 [0] = BSTA
                Local0 [1] = BRAT
                Local0 [2] = BREM
                Local0 [3] = BVOL
                Return (Local0)
            }
        }
    }

    Scope (\_TZ)
    {
        ThermalZone (TZ00)
        {
            Method (_TMP, 0) { Return (TMPK) }
            Method (_CRT, 0) { Return (4030) }
            Name (_TZP, 10)
        }
    }

    Scope (\_SB.CPUS.C000)
    {
        Name (_PCT, Package ()
        {
            ResourceTemplate () { Register (SystemIO, 8, 0, 0x5652) },
            ResourceTemplate () { Register (SystemIO, 8, 0, 0x5652) }
        })
        Name (_PSS, Package ()
        {
            Package () { 2400, 25000, 10, 10, 0x30, 0x30 },
            Package () { 1800, 18000, 10, 10, 0x31, 0x31 },
            Package () { 1200, 10000, 10, 10, 0x32, 0x32 },
            Package () {  600,  4000, 10, 10, 0x33, 0x33 }
        })
        Method (_PPC, 0) { Return (0) }
    }
}
